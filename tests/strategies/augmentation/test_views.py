"""Predictions averaged over main and further looks at its picture; a mirrored look has its words for sides exchanged."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from against_twin import OF_STRATEGIES, _compare
from bundled import BundledContract
from edited_prompts import make_inputs
from gold import SUPPRESSED
from lvlm_guard_augmentation import PooledViews
from lvlm_guard_augmentation.views import mirror, show_window, stretch_contrast
from PIL import Image
from twin import Twin

from lvlm_guard import Exchange, Guard, InputError, NoEffectWarning, StrategyRefused
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.recompute import Recorder
from lvlm_guard.testing.sequences import pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")
SIDES = (("w81", "w82"),)
TEXTS = ("w9 <image> w21 w81 w33", "w8 w82 <image> w7 w12 w13 w50 w51", "<image> w30")
SWAPPED = ("w9 <image> w21 w82 w33", "w8 w81 <image> w7 w12 w13 w50 w51", "<image> w30")
LOOKS = {
    "zoom": functools.partial(show_window, 0.875, 0.0625, 0.0625),
    "contrast": stretch_contrast,
    "mirrored": mirror,
    **{("crop", x, y): functools.partial(show_window, 0.875, x, y) for y in (0, 0.125) for x in (0, 0.125)},
}


def box_of(picture, question):
    """A quarter of the picture, which depends on the question."""
    at = len(question) % 2 * picture.width // 2
    return [(at, 0, at + picture.width // 2, picture.height // 2, "thing")]


def list_looks(strategy):
    kinds = [kind for kind in ("crop", "zoom", "contrast", "mirrored") if kind in strategy.views]
    if "crop" in kinds and strategy.boxes is None:
        kinds = [*(key for key in LOOKS if key[0] == "crop"), *kinds[1:]]
    return kinds


def compute_by_hand(strategy, architecture, model, row, said):
    """Averaged logits of whole prompts, one for each look, and plain ones."""
    picture, logits, weights = pictures()[row], [], []
    plain = Twin(model).next(make_inputs(architecture, picture, TEXTS[row]), said)
    for kind in list_looks(strategy):
        if kind == "crop":
            decode = TinyProcessor(architecture).tokenizer.decode
            ids = make_inputs(architecture, picture, TEXTS[row])["input_ids"][0]
            behind = ids[int((ids == 100).nonzero()[-1]) + 1 :]
            x0, y0, x1, y1, _ = box_of(picture, decode(behind).strip())[0]
            shown = picture.crop((x0, y0, x1, y1)).resize(picture.size)
        else:
            shown = LOOKS[kind](picture, None)
        text = SWAPPED[row] if kind == "mirrored" else TEXTS[row]
        seen = Twin(model).next(make_inputs(architecture, shown, text), said)
        if kind == "mirrored":
            seen[[81, 82]] = seen[[82, 81]]
        weights.append(0.0 if kind == "mirrored" and {81, 82} & set(said) else strategy.weight)
        logits.append(seen)
    total = 1 + sum(weights)
    if strategy.pool == "logits":
        return (plain + sum(weight * one for weight, one in zip(weights, logits, strict=True))) / total, plain
    chances = plain.softmax(-1) + sum(w * one.softmax(-1) for w, one in zip(weights, logits, strict=True))
    return (chances / total).log() + plain.logsumexp(-1), plain


def force_side(ids, scores):
    """Make row 0 say w81 second."""
    if ids.shape[1] == force_side.start + 1:
        scores[: len(scores) // 3] = -torch.inf
        scores[: len(scores) // 3, 81] = 0.0
    return scores


MODES = {
    "greedy": ("auto", {}),
    "sequential": ("sequential", {}),
    "beams": ("auto", {"num_beams": 3}),
    "sampling": ("auto", {"do_sample": True, "top_k": 0}),
}


def check(strategy, architecture, modes=tuple(MODES)):
    model, known, effects, sides = tiny(architecture)[0], {}, [], 0
    for mode in modes:
        executor, settings = MODES[mode]
        guard, recorder = Guard(model, TinyProcessor(architecture), [strategy], executor=executor), Recorder()
        inputs = guard.inputs(images=pictures(), text=TEXTS)
        force_side.start = inputs["input_ids"].shape[1]
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            guard.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, **settings},
                           logits_processor=[recorder, *([force_side] if "num_beams" not in settings else [])])  # fmt: skip
        assert guard.report.executor == ("sequential" if executor == "sequential" else "batched"), guard.report.reason
        beams = settings.get("num_beams", 1)
        for ids, scores in recorder.seen:
            for line in range(len(ids)):
                key = line // beams, tuple(ids[line, force_side.start :].tolist())
                if key not in known:
                    known[key] = compute_by_hand(strategy, architecture, model, *key)
                error, effect = _compare(scores[line], *known[key], beams=beams > 1)
                assert error <= 2e-4, f"{architecture} {mode}, row {key}: off by {error:.2e}"
                effects.append(effect)
                sides += 81 in key[1]
    assert max(effects) > 0.1
    return sides


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_averaged_probabilities(architecture):
    strategy = PooledViews(weight=1.5, sides=SIDES)
    assert check(strategy, architecture)  # some answer goes on behind a word for a side


@pytest.mark.parametrize("strategy", [
    PooledViews(views=("zoom", "contrast"), pool="logits", weight=2.0),
    PooledViews(views=("mirrored",), pool="logits", sides=SIDES, weight=0.7),
    PooledViews(views=("crop",)),
    PooledViews(views=("crop", "zoom"), boxes=box_of, pool="logits"),
])  # fmt: skip
def test_views_and_pools(strategy):
    check(strategy, "llava", ("greedy", "beams"))


def test_a_mirrored_question_matters():
    """Exchanging the words changes what the mirrored branch says."""
    model, picture = tiny("llava")[0], pictures()[0]
    asked, exchanged = (Twin(model).next(make_inputs("llava", picture, texts[0])) for texts in (TEXTS, SWAPPED))
    assert (asked - exchanged).abs().max() > 0.01


def test_neutral_is_plain():
    model, inputs = tiny("llava")
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        Guard(model, None, [PooledViews(weight=0.0)]).generate(**inputs, max_new_tokens=4, do_sample=False), plain
    )


def test_looks_do_what_they_are_called():
    pixels = np.random.default_rng(0).integers(60, 180, (24, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(mirror(picture, None)), pixels[:, ::-1])
    stretched = np.asarray(stretch_contrast(picture, None))
    assert (stretched.min(), stretched.max()) == (0, 255)
    corner = show_window(0.5, 0.5, 0.0, picture, None)
    assert corner.size == picture.size
    assert np.abs(np.asarray(corner).mean((0, 1)) - pixels[:12, 20:].mean((0, 1))).max() < 2


@pytest.mark.parametrize(("sides", "text", "reason"), [
    ((("many words", "other words"),), TEXTS[0], "words of one token each"),
    ((("w33", "w33"),), TEXTS[0], "words of one token each"),
    ((("left", "right"),), "<image> left w30", "in row 0 as a token of its own"),  # this tokenizer writes it back as another word
])  # fmt: skip
def test_what_cannot_be_mirrored_is_refused(sides, text, reason):
    guard = Guard(tiny("llava")[0], TinyProcessor("llava"), [PooledViews(sides=sides)])
    inputs = guard.inputs(images=pictures(1), text=[text])
    with pytest.raises(StrategyRefused, match=reason):
        guard.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("pairs", [((1, 2), (2, 3)), ((1, 1),), ((1, 2, 3),), 5])
def test_an_exchange_is_of_pairs(pairs):
    with pytest.raises(InputError, match="no id twice"):
        Exchange(pairs)


class Normalising(Words):
    """A processor that tells how its pixels were normalised."""

    image_mean = (0.5, 0.4, 0.6)
    image_std = (0.3, 0.2, 0.25)


class TestViews(BundledContract):
    strategy = PooledViews(views=("zoom", "contrast"), weight=2.0)  # a mirror needs a tokenizer that reads prompts back
    architectures = ("llava", "gemma3")  # packed patches need remembered pictures, see above

    def guard(self, model, *strategies, **options):
        return Guard(model, Normalising(), list(strategies), **options)
