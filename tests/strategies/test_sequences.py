"""Searches, evidence, changed pictures and revisions on three architectures: the contract, and the same by hand."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from against_twin import ARCHITECTURES, _compare
from gold import OLD, SUPPRESSED
from lvlm_guard_augmentation import Evidence, Revise, Transform
from lvlm_guard_search import OPERA, Rank
from PIL import Image, ImageFilter
from twin import Twin

from lvlm_guard import Guard, ModeRefused, Search, hookimpl
from lvlm_guard.request.images import generator_for
from lvlm_guard.testing import SequenceContract, TinyProcessor, tiny
from lvlm_guard.testing.recompute import Recorder
from lvlm_guard.testing.sequences import SIDE, TEXTS, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")
TOLERANCE = 2e-4


def liked(picture, texts):
    """A score that depends on picture and words alone."""
    shade = float(np.asarray(picture).mean())
    return [math.sin(shade + sum(map(ord, text))) for text in texts]


def telling(picture, question):
    """Evidence that depends on the picture and the question."""
    return f"w{10 + round(float(np.asarray(picture).mean())) % 50} w{20 + len(question)}"


def claimed(sentence):
    """Each sentence is one claim."""
    return [(sentence.strip(), f"w14 {sentence.strip()}")]


REWINDING = ("llava", "qwen2_vl") if OLD else ARCHITECTURES  # sliding windows cannot forget there
RANK = Rank(scorer=liked, temperature=2.0, top_k=8, max_candidates=3, alpha=0.3, seed=5)
REVISE = Revise(splitter=claimed)


class TestOPERA(SequenceContract):
    strategy = OPERA(beams=3, candidates=2, weight=2.0, opening=2, threshold=99, scale=2000.0)
    baseline: ClassVar = {"num_beams": 3}


class TestOPERAGoingBack(SequenceContract):
    strategy = OPERA(beams=2, candidates=3, weight=1e6, opening=1, threshold=1, rollbacks=2, scale=30.0)
    baseline: ClassVar = {"num_beams": 2}
    architectures = ("llava",)


class TestRank(SequenceContract):
    strategy = RANK
    architectures = REWINDING


class TestEvidence(SequenceContract):
    strategy = Evidence(source=telling)


class TestRevise(SequenceContract):
    strategy = REVISE
    architectures = ("llava", "gemma3") if OLD else ARCHITECTURES  # with its other weights that model denies nothing
    explosions = (3, SequenceContract.tokens + 3)  # in the answer, and in an answer to a question about it


def red(contract):
    """Names of the checks that fail."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except (AssertionError, ModeRefused):
                failed.add(name)
    return failed


@dataclass(frozen=True)
class Draws:
    """A search that samples, well or badly."""

    name: ClassVar[str] = "draws"
    neutral: ClassVar[dict[str, bool]] = {"on": False}
    on: bool = True
    fault: str = "none"

    @hookimpl
    def search(self, gen):
        return [Search(self._run, 1)]

    def _run(self, decoder):
        chance = None if self.fault == "global" else torch.Generator().manual_seed(0)
        while decoder.generated.shape[1] < decoder.limit:
            logits = decoder.logits()
            if self.fault == "mixes rows":
                logits = logits + logits.nan_to_num(neginf=0.0).mean(0)
            if self.fault == "allows all":
                logits = decoder._next()
            noise = torch.rand(logits.shape[-1], generator=chance, device="cpu").to(logits.device)
            decoder.append((logits + 4 * noise).argmax(-1))
        if self.fault == "spills":
            next(decoder._module.parameters()).add_(1e-3)
        return decoder.generated


@dataclass(frozen=True)
class NeverNeutral(Draws):
    """States no neutral values, so that the core cannot leave it out, and searches at those of its contract too."""

    neutral: ClassVar[dict[str, bool]] = {}


FAULTS = {
    "none": None,
    "never neutral": "test_neutral_is_plain_and_refuses_nothing",
    "global": "test_the_same_call_gives_the_same_tokens",
    "mixes rows": "test_rows_of_a_batch_do_not_see_each_other",
    "allows all": "test_a_forbidden_token_stays_forbidden",
    "spills": "test_the_model_is_left_as_it_was",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_turns_red_for_what_is_broken(fault):
    class Contract(SequenceContract):
        strategy = (NeverNeutral if fault == "never neutral" else Draws)(fault=fault)
        neutral: ClassVar = {"on": False}
        architectures = ("llava",)

    failed = red(Contract())
    assert FAULTS[fault] in failed if FAULTS[fault] else not failed


def single(architecture, picture, text):
    return TinyProcessor(architecture)(images=[picture], text=[text])


def check_by_hand(architecture, strategy, edited):
    """Each step, greedy and with beams, against a whole prompt made of `edited(picture, text)` and run alone."""
    model, known, effects = tiny(architecture)[0], {}, []
    shown = pictures()
    alone = [single(architecture, *one) for one in zip(shown, TEXTS, strict=True)]
    wanted = [single(architecture, *edited(*one)) for one in zip(shown, TEXTS, strict=True)]
    for beams in (1, 3):
        guard, recorder = Guard(model, TinyProcessor(architecture), [strategy]), Recorder()
        inputs = guard.inputs(images=shown, text=TEXTS)
        settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, "num_beams": beams}
        got = guard.generate(**inputs, **settings, logits_processor=[recorder])
        assert torch.equal(got[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        start = recorder.seen[0][0].shape[1]
        for ids, scores in recorder.seen:
            for line, row in enumerate(row for row in range(3) for _ in range(beams)):
                key = row, tuple(ids[line, start:].tolist())
                if key not in known:
                    known[key] = [Twin(model).next(one[row], key[1]) for one in (wanted, alone)]
                error, effect = _compare(scores[line], *known[key], beams=beams > 1)
                assert error <= TOLERANCE, f"{architecture} {beams} beams, row {row}: off by {error:.2e}"
                effects.append(effect)
    print(f"{architecture} {strategy.name}: effect {min(effects):.2f} to {max(effects):.2f}")
    assert max(effects) > 0.1


def blurred(picture, _):
    return picture.filter(ImageFilter.GaussianBlur(0.6 * SIDE / 8))


def cropped(picture, draw):
    side = round(SIDE * math.sqrt(0.4))
    left, top = (round(float(share) * (SIDE - side)) for share in torch.rand(2, generator=draw))
    return Image.fromarray(np.asarray(picture)[top : top + side, left : left + side]).resize((SIDE, SIDE))


def masked(picture, draw):
    hidden = torch.randperm(64, generator=draw)[: round(0.6 * 64)].tolist()
    pixels = np.asarray(picture).copy()
    for down in range(SIDE):
        for across in range(SIDE):
            if (down * 8 // SIDE) * 8 + across * 8 // SIDE in hidden:
                pixels[down, across] = 128
    return Image.fromarray(pixels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "change"), [("blur", blurred), ("crop", cropped), ("mask", masked)])
def test_a_transformed_picture_is_that_picture(architecture, kind, change):
    def edited(picture, text):
        return change(picture, generator_for(torch.from_numpy(np.asarray(picture).copy()), 3)), text

    check_by_hand(architecture, Transform(kind=kind, strength=0.6, seed=3), edited)


def asked_in(text):
    """The question of a prompt, in the tokenizer's own words."""
    tokenizer = TinyProcessor("llava").tokenizer
    return tokenizer.decode(tokenizer(text.split("<image>")[1])["input_ids"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_stands_before_the_question_of_its_row(architecture):
    def edited(picture, text):
        return picture, text.replace("<image>", f"<image> {telling(picture, asked_in(text))}")

    check_by_hand(architecture, Evidence(source=telling), edited)


def found(picture, question):
    """Boxes in dark pictures."""
    return [(2, 3, 20, 21.4, "w9"), (1, 5, 10, 30, "w11")] if dark(picture) else []


def dark(picture):
    return float(np.asarray(picture).mean()) <= sorted(float(np.asarray(one).mean()) for one in pictures())[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_boxes_become_sentences_and_a_crop(architecture):
    def edited(picture, text):
        if not dark(picture):
            return picture, text
        cut = Image.fromarray(np.asarray(picture)[3:30, 1:20]).resize((SIDE, SIDE))
        return cut, text.replace("<image>", "<image> w13 w9 w12 w13 w11 w12")

    check_by_hand(architecture, Evidence(source=found, sentence="w13 {} w12", crop=True), edited)


def greedy(model, inputs, tokens, forbidden=(), until=lambda token: False):
    """Tokens of one prompt, run whole at each step."""
    said = []
    while len(said) < tokens and not (said and until(said[-1])):
        logits = Twin(model).next(inputs, said)
        logits[list(forbidden)] = -math.inf
        said.append(int(logits.argmax()))
    return said


def revised_by_hand(architecture, model, picture, text, tokens):
    """The answer without the sentences that the model denies, and how many it denies and keeps."""
    tokenizer = TinyProcessor(architecture).tokenizer
    answer = greedy(model, single(architecture, picture, text), tokens, SUPPRESSED)
    kept, denied, counts, sentence = [], False, [0, 0], []
    for index, token in enumerate(answer):
        sentence.append(token)
        if tokenizer.decode([token]).endswith(".") or index == len(answer) - 1:
            asked = f"user <image> w14 {tokenizer.decode(sentence)}"
            reply = greedy(model, single(architecture, picture, asked), 16, until=lambda one: tokenizer.decode([one]))
            no = re.match("no-", tokenizer.decode(reply))
            counts[bool(no)] += 1
            kept += [] if no else [one for one in sentence if tokenizer.decode([one])]
            denied, sentence = denied or bool(no), []
    return (kept if denied else answer), counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_revise_drops_what_the_model_denies(architecture):
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), [REVISE])
    inputs = guard.inputs(images=pictures(), text=TEXTS)
    got = guard.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=SUPPRESSED)
    counts = []
    for row, (picture, text) in enumerate(zip(pictures(), TEXTS, strict=True)):
        wanted, count = revised_by_hand(architecture, model, picture, text, 8)
        new = got[row, inputs["input_ids"].shape[1] :].tolist()
        assert new == wanted + [0] * (len(new) - len(wanted))
        counts.append(count)
    kept, denied = (sum(one) for one in zip(*counts, strict=True))
    print(f"{architecture}: {kept} sentences kept, {denied} denied")
    assert OLD or denied  # versions draw other random weights
