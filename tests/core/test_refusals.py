"""Every refusal on the page really refuses, with the error it names; a refusal without a case here fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import own_generate
import pytest
import torch
from gold import EXTRA, Against
from transformers import DynamicCache, GenerationConfig, GitConfig

from lvlm_guard import AttentionEdit, Branch, Guard, Insert, ModeRefused, Refused, Revision, Search, hookimpl
from lvlm_guard.call import prompt_preparation
from lvlm_guard.call.refusals import APART, BRANCH, LOOP, MIXED, RULES
from lvlm_guard.call.refused_elsewhere import REFUSED_ELSEWHERE
from lvlm_guard.call.rules import RequestedBranch, refuse
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.request import requests
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.tiny import IMAGE_TOKEN

REFUSALS = {
    refusal.case: refusal for table in (RULES, REFUSED_ELSEWHERE) for refusals in table.values() for refusal in refusals
}
STREAMER = type("Streamer", (), {"put": lambda self, _: None, "end": lambda self: None})()


class Bare(torch.nn.Module):
    """Generates, and says nothing of itself."""

    def generate(self, input_ids):
        return input_ids


def answer(kind):
    model, inputs = own_generate.build(kind)
    return Guard(model, None, [Against("noised")]).generate(**inputs, max_new_tokens=5, do_sample=False)


def go_back(loop):
    for _ in range(2):
        loop.append(loop.logits().argmax(-1))
    loop.rewind(1)


@dataclass(frozen=True)
class Does:
    """A strategy put together from values."""

    name: ClassVar[str] = "does"
    branch: Branch | None = None
    edit: AttentionEdit | None = None
    loop: Callable[..., Any] | None = None
    answer: str = ""

    @hookimpl
    def branches(self, gen):
        return [self.branch] if self.branch else []

    @hookimpl
    def attention(self, gen):
        return [self.edit] if self.edit else []

    @hookimpl
    def search(self, gen):
        return [Search(self.loop)] if self.loop else []

    @hookimpl
    def finish(self, gen):
        return [Revision(0, self.answer)] if self.answer else []


@dataclass(frozen=True)
class Searches:
    name: ClassVar[str] = "searches"

    @hookimpl
    def search(self, gen):
        return [Search(go_back)]


def call(stack="vcd", executor="auto", without=(), without_image="refuse", **arguments):
    """Run a guarded call on a tiny model, without some of its inputs, or with other arguments."""
    model, inputs = tiny("llava")
    stack = stack if isinstance(stack, str) else [stack]
    guard = Guard(model, Words(), stack, executor=executor, without_image=without_image)
    inputs = {name: value for name, value in inputs.items() if name not in without}
    guard.generate(**{**inputs, "max_new_tokens": 4, "do_sample": False, **arguments})


def text_only():
    return {"without": ("pixel_values",), "input_ids": torch.tensor([[1, 8, 9, 10]]), "attention_mask": None}


def call_mixed(images, **arguments):
    """Run two rows, one of them without an image, with so many images."""
    model, inputs = tiny("llava", batch=2)
    ids = inputs["input_ids"].clone()
    ids[1, ids[1] == IMAGE_TOKEN] = 7
    inputs |= {"input_ids": ids, "pixel_values": inputs["pixel_values"][:images]}
    Guard(model, None, "vcd", without_image="plain").generate(**inputs, **arguments)


def filled_cache():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    return cache


def cannot_roll_back(monkeypatch):
    monkeypatch.setattr(caches, "can_roll_back", lambda *_: False)
    call(prompt_lookup_num_tokens=2)


def decode_elsewhere(monkeypatch):
    capture, prepared = prompt_preparation.capture_decode, []

    def capture_elsewhere(*arguments):
        prepared.append(capture(*arguments))
        return dataclasses.replace(prepared[-1], module=torch.nn.Linear(1, 1)) if prepared[1:] else prepared[0]

    monkeypatch.setattr(prompt_preparation, "capture_decode", capture_elsewhere)
    call(Against("longer"))


def outgrow():
    model, inputs = tiny("llava")
    model.config.text_config.max_position_embeddings = inputs["input_ids"].shape[1] + 3 + len(EXTRA) - 1
    Guard(model, None, [Against("longer")]).generate(**inputs, max_new_tokens=3)


def pad_right():
    _, inputs = tiny("llava")
    mask = inputs["attention_mask"].clone()
    mask[:, -2:] = 0
    call(attention_mask=mask)


def edit_features(monkeypatch):
    monkeypatch.setattr(model_inputs, "takes_encoded_images", lambda _: False)
    call(Does(Branch("shrunk", features=lambda features, generator: features * 0.5)))


def build_branch(branch, without=(), **more):
    model, inputs = tiny("llava")
    inputs = {name: value for name, value in inputs.items() if name not in without}
    build_branch_inputs(Request({**inputs, **more}, {}, model.config), branch, None)


def captioned(**settings):
    """A request of a model whose config names no placeholder."""
    config = GitConfig(**settings)
    ids = "decoder_input_ids" if settings else "input_ids"
    return Request({ids: torch.tensor([[8, 9]]), "pixel_values": torch.ones(1, 3, 4, 4)}, {}, config)


def described():
    """A request of pictures alone."""
    return Request({"pixel_values": torch.ones(1, 3, 4, 4)}, {}, GitConfig())


def build_branch_of_video(branch):
    """Check a branch on one video in two pieces."""
    config = tiny("llava_onevision")[0].config
    ids = torch.tensor([[1, 101, 101, 8, 101, 9]])
    refuse(BRANCH, RequestedBranch(branch, Request({"input_ids": ids, "pixel_values_videos": VIDEO}, {}, config)))


VIDEO = torch.zeros(1, 2, 3, 4, 4)
FINAL_TOKENS = "`return_dict_in_generate`, `output_scores` and `output_logits`"
FINISHES, SEARCHES = Does(answer="w9"), Searches()
NEED_THE_LOOP = (
    "`assistant_model`, `assistant_early_exit`, `prompt_lookup_num_tokens`, `stop_strings`, `guidance_scale`"
)
CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "a model without an autoregressive `generate`, `DataParallel` and `DistributedDataParallel` included": (
        lambda _: Guard(torch.nn.DataParallel(tiny("llava")[0])),
        r"^DataParallel has no autoregressive generate.* Guard\(model.module, ...\)",
    ),
    "a model without a `config`": (lambda _: Guard(Bare()), "^Bare has no config"),
    "a class whose `generate` returns no token ids, such as text": (
        lambda _: answer(own_generate.InWords),
        "^generate returned list instead of token ids",
    ),
    "a class whose `generate` puts unknown ids in front of the answer": (
        lambda _: answer(own_generate.Boasting),
        "^generate returned 7 tokens a row where 5 were decoded",
    ),
    "`custom_generate`": (lambda _: call(custom_generate="somebody/loop"), "^custom_generate replaces"),
    "paged and continuous batching": (lambda _: call(cache_implementation="paged"), "^Paged and continuous batching"),
    "a cache that is none of transformers' own, such as tuples of keys and values": (
        lambda _: call(past_key_values=((torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)),)),
        "^past_key_values is a tuple, which is no Cache",
    ),
    LOOP[0].case: (
        lambda _: call(penalty_alpha=0.6, top_k=4),
        "^penalty_alpha makes generate load another decoding loop.*: drop it",
    ),
    "`synced_gpus` with a search, as FSDP and ZeRO-3 set it": (
        lambda _: call(SEARCHES, synced_gpus=True),
        "^A search runs as many forwards as its answer needs",
    ),
    "`synced_gpus` with a revision, as FSDP and ZeRO-3 set it": (
        lambda _: call(FINISHES, synced_gpus=True),
        "^A revision runs as many forwards as its answer needs",
    ),
    "edits of pictures or of features, and masked images, in a request with a video": (
        lambda _: build_branch_of_video(Branch("x", picture=lambda picture, _: picture)),
        "edits still images, but the request holds a video",
    ),
    APART[0].case: (
        lambda _: call(without_image="plain", synced_gpus=True),
        "^without_image=.plain. runs other forwards",
    ),
    "an argument that lists something for each row, such as `adapter_names`, with a search": (
        lambda _: call(SEARCHES, adapter_names=["one"]),
        "^A search runs further rows, which have no entry in adapter_names",
    ),
    "an argument that lists something for each row, such as `adapter_names`, with a revision": (
        lambda _: call(FINISHES, adapter_names=["one"]),
        "^A revision runs further rows, which have no entry in adapter_names",
    ),
    "a branch without the image, where the frames of a video stand apart in the prompt and nothing tells their times from text": (
        lambda _: build_branch_of_video(Branch("x", image="removed")),
        "the frames of a video stand apart",
    ),
    "a branch without the image, where an encoder reads the image alone": (
        lambda _: refuse(BRANCH, RequestedBranch(Branch("x", image="removed"), captioned(is_encoder_decoder=True))),
        "the encoder of this model reads nothing else",
    ),
    "a change of the prompt, where pictures are passed without one": (
        lambda _: refuse(BRANCH, RequestedBranch(Branch("x", image="removed"), described())),
        "changes the prompt, but there is none",
    ),
    "a change of the prompt round the image, where the config names no placeholder and there is no processor": (
        lambda _: refuse(BRANCH, RequestedBranch(Branch("x", image="removed"), captioned())),
        "its processor may",
    ),
    "a cache that already holds tokens": (lambda _: call(past_key_values=filled_cache()), "already holds tokens"),
    "a streamer with a search": (lambda _: call(SEARCHES, streamer=STREAMER), "^A search changes answers after"),
    "`num_return_sequences` with a search": (
        lambda _: call(SEARCHES, num_return_sequences=2),
        "^A search works on one answer",
    ),
    f"{FINAL_TOKENS} with a search": (
        lambda _: call(SEARCHES, output_logits=True),
        "^A search cannot be combined with output_logits",
    ),
    "a cache (`cache`, `past_key_values`) with a search": (
        lambda _: call(SEARCHES, past_key_values=DynamicCache()),
        "leave its candidates in the cache",
    ),
    "`do_sample=True` with a search": (lambda _: call(SEARCHES, do_sample=True), "chooses the tokens itself"),
    f"{NEED_THE_LOOP} with a search": (
        lambda _: call(SEARCHES, guidance_scale=2.0),
        "owns the decoding loop, which is needed by guidance_scale; drop guidance_scale",
    ),
    "beams with a search": (lambda _: call(SEARCHES, num_beams=2), "keeps its own candidates"),
    "`use_cache=False` with a search": (lambda _: call(SEARCHES, use_cache=False), "needs a cache"),
    "a streamer with a revision": (lambda _: call(FINISHES, streamer=STREAMER), "^A revision changes answers after"),
    "`num_return_sequences` with a revision": (
        lambda _: call(FINISHES, num_return_sequences=2, do_sample=True),
        "^A revision works on one answer",
    ),
    f"{FINAL_TOKENS} with a revision": (
        lambda _: call(FINISHES, output_scores=True),
        "^A revision cannot be combined with output_scores",
    ),
    "`prefill_chunk_size`": (lambda _: call(prefill_chunk_size=4), "^Chunked prefill"),
    "assistants and prompt lookup with sliding windows, on older transformers": (cannot_roll_back, "sliding-window"),
    "edits of attention to the image, without an image in the prompt": (
        lambda _: call(Does(edit=AttentionEdit((0, 1), "add", 1.0)), **text_only()),
        "the prompt holds no image",
    ),
    "a branch about the image, without an image": (lambda _: call(**text_only()), "needs an image"),
    "token ids outside the model's vocabulary in a branch or an edit of the prompt": (
        lambda _: call(Does(Branch("stray", tokens=(Insert((10**6,)),)))),
        "outside the model's vocabulary of 128",
    ),
    "a branch that decodes on another module than main": (decode_elsewhere, "another module than main"),
    "a branch whose prompt is too long for the model": (lambda _: outgrow(), "passes the model's"),
    "a call without `input_ids`": (lambda _: call(without=("input_ids", "attention_mask")), "needs input_ids"),
    "prompts padded on the right": (lambda _: pad_right(), "padded on the right"),
    "`position_ids` and `inputs_embeds`, where a branch changes the prompt": (
        lambda _: build_branch(Branch("gone", image="removed"), position_ids=torch.arange(4)[None]),
        "which position_ids and inputs_embeds cannot follow: drop them",
    ),
    "feature edits where generate takes no encoded images": (edit_features, "edits image features"),
    "edits of pixels where the images come already encoded": (
        lambda _: build_branch(
            Branch("x", pixels=lambda pixels, _: pixels), without=("pixel_values",), mm_encoder_outputs={}
        ),
        "come already encoded",
    ),
    "edits of pictures without a processor": (
        lambda _: build_branch(Branch("x", picture=lambda picture, _: picture)),
        "needs the processor",
    ),
    "masked images where images stand beside the prompt": (
        lambda _: build_branch(Branch("x", image="masked"), cross_attention_mask=torch.ones(1, 4)),
        "cannot be masked there",
    ),
    '`executor="batched"` with `use_cache=False`': (
        lambda _: call(executor="batched", use_cache=False),
        "The batched executor needs a cache",
    ),
    '`executor="batched"` where it would not be exact': (
        lambda _: call(executor="batched", past_key_values=type("OtherCache", (DynamicCache,), {})()),
        "would not be exact here",
    ),
    MIXED[0].case: (
        lambda _: call_mixed(1, streamer=STREAMER),
        "which cannot share streamer",
    ),
    MIXED[1].case: (
        lambda _: call_mixed(2),
        "so nothing tells what belongs to whom",
    ),
    "searches that go back, where a cache layer cannot forget tokens": (
        lambda _: call(SEARCHES, cache_implementation="static"),
        "This search goes back",
    ),
}


def test_every_refusal_has_its_own_case():
    refusals = [refusal for table in (RULES, REFUSED_ELSEWHERE) for entries in table.values() for refusal in entries]
    assert len({refusal.case for refusal in refusals}) == len(refusals)
    assert set(CASES) == {refusal.case for refusal in refusals}


@pytest.mark.parametrize("case", CASES)
def test_the_refusal_comes_with_the_error_it_names(case, monkeypatch):
    run, message = CASES[case]
    with pytest.raises(REFUSALS[case].error, match=message) as caught:
        run(monkeypatch)
    assert type(caught.value) is REFUSALS[case].error


HUB_LOOPS = {
    "penalty_alpha": {"penalty_alpha": 0.6},
    "dola_layers": {"dola_layers": "high"},
    "force_words_ids": {"force_words_ids": [[5]], "num_beams": 2},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 0.5},
}


@pytest.mark.parametrize("place", ["call", "config of the call", "config of the model"])
@pytest.mark.parametrize("name", HUB_LOOPS)
def test_loops_of_the_hub_are_refused_wherever_they_are_set(name, place):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 4, **HUB_LOOPS[name]}
    if place == "config of the model":
        for setting, value in settings.items():
            setattr(model.generation_config, setting, value)
    more = {"call": settings, "config of the call": {"generation_config": GenerationConfig(**settings)}}.get(place, {})
    remedy = "take it out of model.generation_config" if place == "config of the model" else "drop it"
    with pytest.raises(ModeRefused, match=f"^{name} makes generate load another decoding loop.*: {remedy}"):
        Guard(model, None, "vcd").generate(**inputs, **more)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty_alpha": 0.6, "top_k": 1},
        {"penalty_alpha": 0.0, "top_k": 4},
        {"penalty_alpha": 0.6, "do_sample": True},
        {"num_beam_groups": 1, "num_beams": 2},
    ],
)
def test_settings_that_leave_the_loop_alone_are_taken(settings):
    model, inputs = tiny("llava")
    assert Guard(model, None, "vcd").generate(**inputs, max_new_tokens=2, **settings).shape[0] == 1


def test_processes_that_generate_keeps_in_step_are_known_without_the_argument(monkeypatch):
    model, _ = tiny("llava")
    monkeypatch.setattr(requests.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(requests.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(requests.generation, "is_fsdp_managed_module", lambda _: False)
    assert not requests.runs_in_step(model)
    monkeypatch.setattr(requests.generation, "is_fsdp_managed_module", lambda module: module is model)
    assert requests.runs_in_step(model)


def test_the_first_rule_that_applies_refuses_and_others_are_not_asked():
    def never(_):
        raise AssertionError("asked after a refusal")

    rule = RULES["Arguments"][0]
    skipped = dataclasses.replace(rule, applies=lambda _: False)
    first = dataclasses.replace(rule, applies=bool, message=lambda subject: f"not {subject}")
    with pytest.raises(Refused, match="not this"):
        refuse((skipped, first, dataclasses.replace(rule, applies=never)), "this")
    refuse((skipped,), "this")
