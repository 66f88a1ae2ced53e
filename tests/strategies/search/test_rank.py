"""Per sentence, the candidate with the greatest beta mean(score) + alpha log p(answer) / tokens."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from against_twin import ARCHITECTURES
from gold import OLD, ROLLS_BACK, SUPPRESSED
from lvlm_guard_kernels.select.noise import gumbel
from lvlm_guard_search import Rank
from PIL import Image
from twin import Twin

from lvlm_guard import Guard, InputError, ProcessorNeeded
from lvlm_guard.testing import SequenceContract, TinyProcessor, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def draw_pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30, 30, 3), dtype=np.uint8)) for _ in range(3)]


def score_texts(picture, texts):
    """A score that depends on picture and words alone."""
    shade = float(np.asarray(picture).mean())
    return [math.sin(shade + sum(map(ord, text))) for text in texts]


RANK = Rank(scorer=score_texts, temperature=2.0, top_k=8, max_candidates=3, alpha=0.3, seed=5)


PROMPTS = ["a <image> b", "a b c <image> d e f", "<image> a"]


def run_rank(strategy, shown, prompts, tokens=8, architecture="llava", **settings):
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), [strategy])
    inputs = guard.inputs(images=shown, text=prompts)
    base = {"max_new_tokens": tokens, "suppress_tokens": SUPPRESSED, "eos_token_id": 59, "pad_token_id": 0}
    output = guard.generate(**inputs, **(base | settings))
    return model, inputs, output[:, inputs["input_ids"].shape[1] :]


def naive_rank(model, inputs, picture, tokenizer, limit):
    """One prompt: whole prompts, one candidate after the other."""
    answer, total, scores = [], 0.0, []
    while len(answer) < limit and answer[-1:] != [59]:
        options = []
        for candidate in range(RANK.max_candidates):
            tokens, logarithm = list(answer), total
            while True:
                logits = Twin(model).next(inputs, tokens)
                logits[SUPPRESSED] = -math.inf
                best, ids = logits.log_softmax(-1).topk(RANK.top_k)
                noise = gumbel(RANK.seed, len(tokens), torch.tensor([candidate]), ids[None])[0]
                chosen = (best / RANK.temperature + noise).argmax()
                tokens.append(int(ids[chosen]))
                logarithm += float(best[chosen])
                text = tokenizer.decode(tokens[len(answer) :], skip_special_tokens=True)
                if tokens[-1] == 59 or len(tokens) == limit or text.endswith("."):
                    break
            now = [*scores, *(score_texts(picture, [text]) if text else [])]
            value = RANK.beta * sum(now) / max(len(now), 1) + RANK.alpha * logarithm / len(tokens)
            options.append((value, tokens, logarithm, now))
        _, answer, total, scores = max(options, key=lambda option: option[0])
    return answer, len(scores)


@pytest.mark.parametrize("architecture", ARCHITECTURES if ROLLS_BACK else ["llava", "qwen2_vl"])  # as above
def test_rank_is_its_twin(architecture):
    shown = draw_pictures()
    model, _, got = run_rank(RANK, shown, PROMPTS, architecture=architecture)
    processor, rounds = TinyProcessor(architecture), []
    for row in range(3):
        single = processor(images=[shown[row]], text=[PROMPTS[row]])
        wanted, said = naive_rank(model, single, shown[row], processor.tokenizer, 8)
        rounds.append(said)
        assert got[row].tolist() == (wanted + [0] * 8)[: got.shape[1]]
        alone = run_rank(RANK, shown[row : row + 1], PROMPTS[row : row + 1], architecture=architecture)[2][0]
        assert alone.tolist() == wanted
    print(f"{architecture}: sentences {rounds}")
    assert OLD or max(rounds) > 1  # versions draw other random weights
    other = run_rank(Rank(**{**vars(RANK), "beta": 0.0}), shown, PROMPTS, architecture=architecture)[2]
    assert got.shape != other.shape or not torch.equal(got, other)


def hang(picture, texts):
    time.sleep(3)


def fail(picture, texts):
    raise RuntimeError("no weights")


@pytest.mark.parametrize(("scorer", "message"), [
    (hang, "scorer hang did not answer within 0.1 s"),
    (fail, "scorer fail raised RuntimeError: no weights"),
    (lambda picture, texts: [1.0], "a finite score for each of 3 sentences"),
    (lambda picture, texts: [float("nan")] * 3, "a finite score for each of 3 sentences"),
    ("nowhere.at:all", "'nowhere.at:all' cannot be imported"),
    ("math:pi", "is not a function"),
    (None, "needs a scorer"),
])  # fmt: skip
def test_a_bad_scorer_is_named(scorer, message, monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_ALLOW", "nowhere.at:all,math:pi")
    begun = time.monotonic()
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [Rank(scorer=scorer, timeout=0.1)])
    inputs = guard.inputs(images=draw_pictures()[0], text="a <image> b")
    with pytest.raises(InputError, match=message):
        guard.generate(**inputs, max_new_tokens=3, suppress_tokens=SUPPRESSED)
    assert time.monotonic() - begun < 2.5
    assert "forward" not in vars(model)
    plain = {"max_new_tokens": 3, "suppress_tokens": SUPPRESSED}
    assert torch.equal(model.generate(**inputs, **plain), Guard(model, None, []).generate(**inputs, **plain))


def test_a_scorer_may_be_an_import_path(monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_ALLOW", "builtins:zip")
    for scorer in ("builtins:zip", "nowhere"):
        with pytest.raises(InputError):
            run_rank(Rank(scorer=scorer), draw_pictures(), PROMPTS)


def test_rank_needs_pictures():
    model, inputs = tiny("llava")
    with pytest.raises(ProcessorNeeded, match=r"guard\.inputs"):
        Guard(model, TinyProcessor("llava"), [RANK]).generate(**inputs, max_new_tokens=2)


REWINDING = ARCHITECTURES if ROLLS_BACK else ("llava", "qwen2_vl")  # sliding windows cannot forget there


class TestRank(SequenceContract):
    strategy = RANK
    architectures = REWINDING
