"""Searches that drive the decode: what they see, reorder and rewind equals generate, and what was never left."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from against_twin import ARCHITECTURES
from gold import BRANCHES, ROLLS_BACK, SUPPRESSED, WEIGHT
from transformers import DynamicCache, LogitsProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from versions import skip

from lvlm_guard import (
    Contrast,
    Guard,
    GuardWarning,
    InputError,
    ModeRefused,
    NoEffectWarning,
    PluginRejected,
    Restrict,
    Search,
    StackError,
    hookimpl,
)
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

EXECUTORS = ("auto", "sequential")
SPLITS = ((), ("noised",), ("longer", "blind"))
KEPT = Restrict(~torch.isin(torch.arange(128), torch.tensor(SUPPRESSED)))


@dataclass(frozen=True)
class Driven:
    """A search written in the test, with any branches beside it."""

    name: ClassVar[str] = "driven"
    loop: Callable[[Any], Any] | None = None
    rows: int = 1
    kinds: tuple[str, ...] = ()
    shared_prompt: bool = True

    @hookimpl
    def branches(self, gen):
        return [BRANCHES[kind] for kind in self.kinds]

    @hookimpl
    def terms(self, gen):
        return [KEPT, *(Contrast(kind, WEIGHT / len(self.kinds)) for kind in self.kinds)]

    @hookimpl
    def search(self, gen):
        return [Search(self.loop, self.rows, self.shared_prompt)] if self.loop else []


def greedy(decoder):
    pad = decoder.settings.pad_token_id or 0
    ended = torch.zeros(len(decoder.generated), dtype=torch.bool)
    while decoder.generated.shape[1] < decoder.limit and not ended.all():
        decoder.append(decoder.logits().argmax(-1).masked_fill(ended, pad))
        ended |= decoder.finished()
    return decoder.generated[:: decoder.rows_per_request]


def ragged(architecture):
    model, _ = tiny(architecture)
    return model, left_padded([inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)])


def run(model, inputs, strategy, executor="auto", tokens=6, **settings):
    guard = Guard(model, None, [strategy], executor=executor)
    base = {"max_new_tokens": tokens, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        output = guard.generate(**inputs, **(base | settings))
    return output, guard.report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kinds", SPLITS)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_greedy_search_is_generate(architecture, kinds, executor, rows):
    model, inputs = ragged(architecture)
    wanted, _ = run(model, inputs, Driven(kinds=kinds), executor)
    got, report = run(model, inputs, Driven(greedy, rows, kinds), executor)
    assert torch.equal(got, wanted)
    assert report.executor == ("none" if not kinds else "sequential" if executor == "sequential" else "batched")
    assert report.tokens == 6
    assert report.rows == 3 * rows
    if kinds:
        assert not torch.equal(got, run(model, inputs, Driven(), executor)[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_prompt_is_run_once_for_candidates_that_begin_alike(architecture, executor):
    model, inputs = ragged(architecture)
    seen, found = [], []

    def loop(decoder):
        decoder.append(decoder.logits().topk(4).indices[::4].flatten())
        found.append(torch.stack([decoder.logits(), decoder.gen.logits()[:, -1]]))
        return decoder.generated[::4]

    handle = model.get_decoder().layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    run(model, inputs, Driven(loop, 4, ("longer", "blind")), executor, tokens=2)
    seen.clear(), found.clear()  # the first call tries the model on small batches
    for shared_prompt in (True, False):
        run(model, inputs, Driven(loop, 4, ("longer", "blind"), shared_prompt), executor, tokens=2)
    handle.remove()
    half = len(seen) // 2
    assert seen[:3] == [3, 3, 3]
    assert seen[half : half + 3] == [12, 12, 12]
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0][0, 0], found[0][0, 1], atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_end_are_padded_as_generate_pads_them(architecture):
    model, inputs = ragged(architecture)
    plain, _ = run(model, inputs, Driven())
    start = inputs["input_ids"].shape[1]
    for end in {int(plain[0, start + 1]), int(plain[1, start + 2]), int(plain[2, start])}:
        ends = {"eos_token_id": [end, 59], "pad_token_id": 0}
        wanted, _ = run(model, inputs, Driven(kinds=("noised",)), **ends)
        got, _ = run(model, inputs, Driven(greedy, 2, ("noised",)), **ends)
        assert torch.equal(got, wanted)


def beams(width, found):
    """Plain beam search of a fixed length; keeps the scores of each request's beams."""

    def loop(decoder):
        scores = torch.full((decoder.requests, width), -1e9)
        scores[:, 0] = 0
        while decoder.generated.shape[1] < decoder.limit:
            logits = decoder.logits().log_softmax(-1)
            vocabulary = logits.shape[-1]
            total = (logits.view(decoder.requests, width, -1) + scores[..., None]).flatten(1)
            scores, best = total.topk(width)
            parents = best // vocabulary + torch.arange(decoder.requests)[:, None] * width
            decoder.select(parents.flatten())
            decoder.append((best % vocabulary).flatten())
        found.append(scores / decoder.limit)
        return decoder.generated[::width]

    return loop


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kinds", SPLITS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_beam_search_is_generates(architecture, kinds, executor):
    model, inputs = ragged(architecture)
    scored = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    wanted, _ = run(model, inputs, Driven(kinds=kinds), executor, **scored)
    found = []
    got, _ = run(model, inputs, Driven(beams(3, found), 3, kinds), executor)
    assert torch.equal(got, wanted.sequences[::3])
    assert torch.allclose(found[0].flatten(), wanted.sequences_scores, atol=1e-4)


def remembering(seen):
    """Greedy; keeps the logits of each step by number of tokens."""

    def go(decoder, stop):
        while decoder.generated.shape[1] < stop:
            seen.setdefault(decoder.generated.shape[1], []).append(decoder.logits().clone())
            decoder.append(seen[decoder.generated.shape[1]][-1].argmax(-1))

    return go


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kinds", SPLITS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_going_on_after_a_rewind_is_never_having_left(architecture, kinds, executor):
    if not ROLLS_BACK and architecture == "gemma3":
        skip("sliding windows that forget no tokens; see the refusal below")
    model, inputs = ragged(architecture)
    seen = {}

    def loop(decoder):
        go = remembering(seen)
        go(decoder, 6)
        wanted = decoder.generated.clone()
        for back in (6, 5, 0, 3, 1, 4, 2):
            decoder.rewind(back)
            assert torch.equal(decoder.generated, wanted[:, :back])
            if back % 2:  # astray, and back again
                decoder.append((wanted[:, back] + 1) % 60)
                decoder.append((wanted[:, back] + 2) % 60)
                decoder.logits()
                decoder.rewind(back)
            go(decoder, 6)
            assert torch.equal(decoder.generated, wanted)
        return wanted[::2]

    got, _ = run(model, inputs, Driven(loop, 2, kinds), executor)
    assert torch.equal(got, run(model, inputs, Driven(kinds=kinds), executor)[0])
    assert min(map(len, seen.values())) > 1
    for logits in seen.values():
        assert all(torch.allclose(logits[0], one, atol=1e-4) for one in logits)


@dataclass(frozen=True)
class Noting(Driven):
    """Keeps main's best tokens with the rows, so that they must follow every move."""

    name: ClassVar[str] = "noting"

    @hookimpl
    def observe(self, gen):
        gen.rows.append("best", gen.combined.argmax(-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_select_moves_rows_branches_and_what_strategies_keep(architecture, executor):
    model, inputs = ragged(architecture)

    def loop(decoder):
        first = decoder.logits().topk(3).indices[::3].flatten()
        decoder.append(first)  # three ways to begin, for each request
        for _ in range(2):
            decoder.append(decoder.logits().argmax(-1))
        decoder.logits()
        before, kept = decoder.generated.clone(), decoder.gen.rows["best"].clone()
        index = torch.tensor([2, 0, 0, 3, 5, 4, 8, 8, 8])
        decoder.select(index)
        assert torch.equal(decoder.generated, before[index])
        assert torch.equal(decoder.gen.rows["best"], kept[index])
        moved = decoder.logits().clone()
        decoder.append(moved.argmax(-1))
        going_on = decoder.logits().clone()
        assert decoder.gen.rows["best"].shape[1] == 5
        if ROLLS_BACK or architecture != "gemma3":
            decoder.rewind(0)
            for step in range(4):
                decoder.append(torch.cat([before[index], moved.argmax(-1)[:, None]], dim=1)[:, step])
            assert torch.allclose(decoder.logits(), going_on, atol=1e-4)
            assert decoder.gen.rows["best"].shape[1] == 5
        assert not torch.equal(moved[0], moved[1])
        assert torch.allclose(moved[1], moved[2], atol=1e-5)
        with pytest.raises(InputError, match="within one request"):
            decoder.select(torch.tensor([3, 0, 0, 3, 5, 4, 8, 8, 8]))
        return decoder.generated[::3]

    run(model, inputs, Noting(loop, 3, ("longer",)), executor)


def test_a_decoder_refuses_what_it_cannot_do():
    model, inputs = ragged("llava")

    def loop(decoder):
        decoder.append(decoder.logits().argmax(-1))
        with pytest.raises(InputError, match="one token a row"):
            decoder.append(torch.zeros(2, dtype=torch.long))
        with pytest.raises(InputError, match="rewind to 4 of 1"):
            decoder.rewind(4)
        return decoder.generated

    run(model, inputs, Driven(loop))


class Watching(LogitsProcessor):
    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores):
        self.lengths.append(tuple(input_ids.shape))
        return scores


def test_the_calls_processors_see_prompts_and_tokens():
    model, inputs = ragged("llava")
    start, watching = inputs["input_ids"].shape[1], Watching()
    free, _ = run(model, inputs, Driven(greedy, 2))
    settings = {
        "bad_words_ids": [[int(token)] for token in free[:, start]],
        "min_new_tokens": 3,
        "eos_token_id": int(free[0, start + 1]),
        "repetition_penalty": 1.3,
        "pad_token_id": 0,
    }
    wanted, _ = run(model, inputs, Driven(), **settings)
    got, _ = run(model, inputs, Driven(greedy, 2), **settings, logits_processor=[watching])
    assert torch.equal(got, wanted)
    assert not torch.equal(got, free)
    assert watching.lengths == [(6, start + step) for step in range(got.shape[1] - start)]


def test_the_calls_own_criteria_end_rows():
    model, inputs = ragged("llava")
    start = inputs["input_ids"].shape[1]
    got, _ = run(model, inputs, Driven(greedy), stopping_criteria=[lambda ids, scores: ids[:, -1] >= 0])
    assert got.shape[1] == start + 1
    got, _ = run(model, inputs, Driven(greedy), max_new_tokens=None, max_length=start + 4)
    assert got.shape[1] == start + 4


REFUSED = {
    "streamer": {"streamer": type("Streamer", (), {"put": lambda self, _: None, "end": lambda self: None})()},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "assistant_model": {"assistant_model": object()},
    "num_beams": {"num_beams": 2},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "output_scores": {"output_scores": True},
    "output_logits": {"output_logits": True},
    "return_dict_in_generate": {"return_dict_in_generate": True},
    "use_cache": {"use_cache": False},
    "stop_strings": {"stop_strings": ["x"], "tokenizer": object()},
    "guidance_scale": {"guidance_scale": 2.0},
    "do_sample": {"do_sample": True},
    "past_key_values": {"past_key_values": DynamicCache()},
}


@pytest.mark.parametrize("mode", REFUSED)
def test_modes_are_refused_by_name(mode):
    model, inputs = tiny("llava")
    with pytest.raises(ModeRefused, match="stream" if mode == "streamer" else mode):
        run(model, inputs, Driven(greedy), **REFUSED[mode])
    assert "generate" not in vars(model)
    assert "forward" not in vars(model)


def test_a_sampling_default_of_the_model_is_no_obstacle():
    model, inputs = tiny("llava")
    wanted, _ = run(model, inputs, Driven())
    model.generation_config.do_sample = True
    with pytest.warns(GuardWarning, match="checkpoint's generation_config sets do_sample=True.*Pass do_sample=False"):
        got = Guard(model, None, [Driven(greedy)]).generate(**inputs, max_new_tokens=6)
    assert torch.equal(got, wanted)


def test_beams_of_a_checkpoint_are_named_as_such():
    model, inputs = tiny("llava")
    model.generation_config.num_beams = 4
    guard = Guard(model, None, [Driven(greedy)])
    with pytest.raises(ModeRefused, match="the checkpoint's generation_config sets num_beams=4: pass num_beams=1"):
        guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    with pytest.raises(ModeRefused, match="drop num_beams"):
        guard.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=3)
    guard.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=1)


@pytest.mark.parametrize("setting", [{"temperature": 0.7}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}])
def test_arguments_that_a_search_ignores_are_said(setting):
    model, inputs = tiny("llava")
    (name,) = setting
    with pytest.warns(GuardWarning, match=f"{name}=.* has no effect: 'driven' chooses .* Drop {name}"):
        Guard(model, None, [Driven(greedy)]).generate(**inputs, max_new_tokens=2, **setting)


@dataclass(frozen=True)
class Another(Driven):
    name: ClassVar[str] = "another"


def test_two_searches_are_one_too_many():
    model, inputs = tiny("llava")
    with pytest.raises(StackError, match="driven, another"):
        Guard(model, None, [Driven(greedy), Another(greedy)]).generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("found", [torch.zeros(2, 3, dtype=torch.long), torch.zeros(1, 3), [1, 2], None])
def test_what_a_search_returns_is_checked(found):
    model, inputs = tiny("llava")
    with pytest.raises(PluginRejected, match=r"driven\.search must return token ids"):
        run(model, inputs, Driven(lambda decoder: found))


def test_caches_that_cannot_go_back_say_so():
    model, inputs = tiny("llava")

    def loop(decoder):
        decoder.append(decoder.logits().argmax(-1))
        decoder.append(decoder.logits().argmax(-1))
        decoder.rewind(1)
        return decoder.generated

    with pytest.raises(ModeRefused, match="StaticLayer"):
        run(model, inputs, Driven(loop), cache_implementation="static")
    if "qwen3_5" in CONFIG_MAPPING:
        model, inputs = tiny("qwen3_5")
        wanted, _ = run(model, inputs, Driven())
        assert torch.equal(run(model, inputs, Driven(greedy))[0], wanted)
