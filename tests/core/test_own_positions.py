"""One batch is decoded only with positions and caches that are proven: every step equals the model's own decode."""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
import transformers
from gold import EXTRA, WEIGHT, disturbed
from odd_models import CACHE
from own_positions import BUILDERS, build, inputs_for
from replay import replay
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from versions import skip

from lvlm_guard import Branch, Contrast, Generation, Guard, Insert, ModeRefused, Term, hookimpl
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import tiny

TOKENS = 5
FORWARD = inspect.signature(transformers.LlavaForConditionalGeneration.forward)
TOLERANCE = 1e-4
SETTINGS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


@dataclasses.dataclass(frozen=True)
class Beside:
    """Contrast with noised pixels, or with a prompt that is longer at its end."""

    name: ClassVar[str] = "beside"
    kind: str = "longer"

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        longer = self.kind == "longer"
        yield Branch("b", tokens=(Insert(EXTRA, "end"),)) if longer else Branch("b", pixels=disturbed)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        yield Contrast("b", WEIGHT)


def by_hand(inputs: dict[str, Any], kind: str) -> dict[str, Any]:
    """The branch's inputs, written without the library."""
    if kind == "noised":
        return {**inputs, "pixel_values": disturbed(inputs["pixel_values"])}
    ids = inputs["input_ids"]
    extra = torch.tensor([EXTRA] * len(ids))
    grown = {**inputs, "input_ids": torch.cat([ids, extra], dim=1)}
    for name, value in (("attention_mask", 1), ("image_embeds_position_mask", 0)):
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.full_like(extra, value)], dim=1)
    if (mask := inputs.get("image_attention_mask")) is not None:
        grown["image_attention_mask"] = torch.cat([mask, mask[:, -1:].repeat(1, len(EXTRA), 1)], dim=1)
    return grown


def guarded(model: Any, inputs: dict[str, Any], kind: str = "longer", executor: str = "auto", **settings: Any):
    guard = Guard(model, None, [Beside(kind)], executor=executor)
    return guard.generate(**inputs, **{**SETTINGS, **DETAILS, **settings}), guard.report


def errors(model: Any, inputs: dict[str, Any], output: Any, kind: str = "longer") -> tuple[float, float]:
    """Largest difference from the formula on the model's own decodes, and the branch's smallest effect on a row."""
    tokens = output.sequences[:, -len(output.logits) :]
    main, branch = (replay(model, variant, tokens) for variant in (inputs, by_hand(inputs, kind)))
    gold = (1 + WEIGHT) * main - WEIGHT * branch
    found = torch.stack(output.logits)
    return float((gold - found).abs().max()), float((gold - main).abs().amax((0, 2)).min())


CASES = [(name, kind) for name in BUILDERS for kind in ("noised", "longer") if (name, kind) != ("kosmos2_5", "noised")]


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_step_is_what_main_and_branch_decode_by_themselves(name, kind, padding):
    model, inputs = build(name), inputs_for(name, padding=padding)
    output, report = guarded(model, inputs, kind)
    error, effect = errors(model, inputs, output, kind)
    assert error <= TOLERANCE, f"differs by {error} ({report.executor}: {report.reason})"
    assert effect > 0.05, f"no power: the branch moves a row by {effect} only"


@pytest.mark.parametrize("name", ["kosmos2", "kosmos2_5", "git"])
def test_a_row_without_padding_equals_a_recompute_without_cache(name):
    model, inputs = build(name), inputs_for(name)
    plain, recomputed = (model.generate(**inputs, **SETTINGS, **DETAILS, use_cache=cached) for cached in (True, False))
    if not torch.allclose(plain.logits[1], recomputed.logits[1], atol=TOLERANCE):
        skip(f"a {name} whose own cache changes what it decodes")
    output, _ = guarded(model, inputs)
    start = inputs["input_ids"].shape[1]
    for row in (0, 1):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        tokens = output.sequences[row, start:].tolist()
        for step in range(TOKENS):
            main, branch = (
                next_logits(model, grown(variant, tokens[:step]), []) for variant in (alone, by_hand(alone, "longer"))
            )
            gold = (1 + WEIGHT) * main - WEIGHT * branch
            assert float((gold - output.logits[step][row]).abs().max()) <= TOLERANCE


def grown(inputs: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """A prompt with generated tokens behind it, and the mask of a Kosmos image as long as the prompt."""
    more = torch.tensor([tokens], dtype=torch.long)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
    for name, value in (("attention_mask", 1), ("image_embeds_position_mask", 0)):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.full_like(more, value)], dim=1)
    return longer


def test_prompts_of_one_length_still_decode_as_one_batch_where_the_model_makes_its_positions():
    assert guarded(build("kosmos2"), inputs_for("kosmos2", padding=2), "noised")[1].executor == "batched"
    report = guarded(build("git"), inputs_for("git", padding=2), "noised")[1]
    assert report.executor == "batched" or "per-row input" in report.reason  # 4.57 hands it the pixels at every step


class OwnPositions(transformers.LlavaForConditionalGeneration):
    """Keeps no positions between its steps: the decoder counts what lies in the cache."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs.pop("position_ids", None)
        return inputs


class DeafToPositions(transformers.LlavaForConditionalGeneration):
    """Takes position ids, and counts for itself."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)

    forward.__signature__ = FORWARD


class ScaledPositions(transformers.LlavaForConditionalGeneration):
    """Gives the first generated token another position than the one after the prompt's last."""

    def prepare_inputs_for_generation(self, ids, *args, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"] + 11
        return inputs


class WidePositions(transformers.LlavaForConditionalGeneration):
    """Leaves a gap between the positions of generated tokens."""

    def prepare_inputs_for_generation(self, ids, *args, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"] * 2
        return inputs


class TupleCache(transformers.LlavaForConditionalGeneration):
    """Answers with tuples of keys and values, as models of old did, and goes on with them."""

    def forward(self, *args, **kwargs):
        if isinstance(past := kwargs.get(CACHE), tuple):
            kwargs[CACHE] = past[0][2]
        output = super().forward(*args, **kwargs)
        if (cache := output.get(CACHE)) is not None:
            output[CACHE] = tuple((layer.keys, layer.values, cache) for layer in cache.layers)
        return output

    forward.__signature__ = FORWARD


class WrappedCache(transformers.LlavaForConditionalGeneration):
    """Wraps the cache it gets, and answers with the wrapper."""

    def forward(self, *args, **kwargs):
        cache = kwargs.get(CACHE)  # some versions leave it to the model
        output = super().forward(*args, **{**kwargs, CACHE: getattr(cache, "self_attention_cache", cache)})
        output[CACHE] = EncoderDecoderCache(output[CACHE], DynamicCache())
        return output

    forward.__signature__ = FORWARD


class HidingCache(DynamicCache):
    """Shows no position, whatever it holds."""

    def get_seq_length(self, *args, **kwargs):
        return 0


class SilentCache(transformers.LlavaForConditionalGeneration):
    """Decodes with a cache whose length nobody can see."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.get(CACHE) is not None:
            output[CACHE].__class__ = HidingCache
        return output

    forward.__signature__ = FORWARD


class CopiedCache(transformers.LlavaForConditionalGeneration):
    """Answers with no cache of its own, and goes on with a copy."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        self.layers_of_cache = output[CACHE].layers
        setattr(output, CACHE, None)
        return output

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        kwargs_next = super()._update_model_kwargs_for_generation(outputs, dict(model_kwargs), **kwargs)
        copied = DynamicCache()
        copied.layers = self.layers_of_cache
        kwargs_next[CACHE] = copied
        return kwargs_next

    forward.__signature__ = FORWARD

    def generate(self, **inputs):
        """New tokens alone, as the chat functions of some models return them."""
        output = super().generate(**inputs)
        return (
            output
            if isinstance(output, torch.Tensor) and "custom_generate" in inputs
            else output[:, len(inputs["input_ids"][0]) :]
        )


def llava_as(kind: type, padding: int = 0) -> tuple[Any, dict[str, Any]]:
    model, inputs = tiny("llava", 2)
    model.__class__ = kind
    if padding:
        ids = inputs["input_ids"]
        ids[1] = torch.cat([torch.zeros(padding, dtype=torch.long), ids[1, :-padding]])
        inputs["attention_mask"][1, :padding] = 0
    return model, inputs


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("kind", ["noised", "longer"])
@pytest.mark.parametrize("peculiar", [OwnPositions, DeafToPositions, ScaledPositions, WrappedCache])
def test_peculiar_models_decode_their_branches_as_they_would_alone(peculiar, kind, padding):
    model, inputs = llava_as(peculiar, padding)
    output, report = guarded(model, inputs, kind)
    error, effect = errors(model, inputs, output, kind)
    assert error <= TOLERANCE, f"differs by {error} ({report.executor}: {report.reason})"
    assert effect > 0.05, f"no power: the branch moves a row by {effect} only"


def test_a_wrapped_cache_follows_its_beams():
    outputs = []
    for kind in (WrappedCache, transformers.LlavaForConditionalGeneration):
        model, inputs = llava_as(kind)
        outputs.append(guarded(model, inputs, num_beams=3, num_return_sequences=3, output_scores=True)[0])
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.allclose(outputs[0].sequences_scores, outputs[1].sequences_scores, atol=TOLERANCE)


def test_a_cache_that_shows_no_length_is_refused_with_the_remedy():
    model, inputs = llava_as(SilentCache)
    with pytest.raises(ModeRefused, match=r"shows 0 positions where.*use_cache=False"):
        guarded(model, inputs)
    assert guarded(model, inputs, max_new_tokens=1, min_new_tokens=1)[1].executor == "prefill only"
    assert guarded(model, inputs, use_cache=False)[1].executor == "sequential"


class FromEmbeddings(transformers.LlavaForConditionalGeneration):
    """Decodes from embeddings at every step, as a wrapper does that takes each for the first."""

    def prepare_inputs_for_generation(self, ids, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(ids, *args, **kwargs)
        inputs["inputs_embeds"] = (
            self.get_input_embeddings()(inputs["input_ids"]) if not kwargs.get("is_first_iteration") else None
        )
        inputs["input_ids"] = inputs["input_ids"] if kwargs.get("is_first_iteration") else None
        return inputs


def test_a_decode_from_embeddings_is_refused():
    model, inputs = llava_as(FromEmbeddings)
    model.generate(**inputs, **SETTINGS)
    with pytest.raises(ModeRefused, match="decodes from embeddings after its prompt"):
        guarded(model, inputs)


def test_a_cache_of_tuples_is_refused_with_the_remedy():
    model, inputs = llava_as(TupleCache)
    model.generate(**inputs, **SETTINGS)
    with pytest.raises(ModeRefused, match=r"a tuple that shows 0 positions.*use_cache=False"):
        guarded(model, inputs)
    assert guarded(model, inputs, use_cache=False)[1].executor == "sequential"


def test_positions_with_gaps_are_refused_in_one_batch_and_right_one_by_one():
    model, inputs = llava_as(WidePositions)
    with pytest.raises(ModeRefused, match=r"do not go up by 1.*executor='sequential'"):
        guarded(model, inputs)
    output, _ = guarded(model, inputs, executor="sequential")
    error, effect = errors(model, inputs, output)
    assert error <= TOLERANCE
    assert effect > 0.05


def test_tokens_that_were_decoded_past_the_guard_are_an_error_whatever_the_output_holds():
    model, inputs = llava_as(CopiedCache)
    with pytest.raises(ModeRefused, match=r"another cache than its prefill.*use_cache=False"):
        Guard(model, None, [Beside()]).generate(**inputs, **SETTINGS)
