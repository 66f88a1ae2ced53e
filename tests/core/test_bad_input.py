"""Bad input: a clear error from the tree, naming what to do, and nothing lost."""

import contextlib
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import torch
from gold import EXTRA, SUPPRESSED, Against
from lvlm_guard_contrastive import ICD, VCD
from pydantic import Field
from transformers import BertConfig, BertModel, DynamicCache

import lvlm_guard as lg
from lvlm_guard import Branch, Guard, Insert, hookimpl
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SUPPRESSED}


@pytest.fixture(scope="module")
def llava():
    return tiny("llava")


@pytest.mark.parametrize("stack", ["vcd", "m3id", "vdd"])
def test_no_image_for_an_image_strategy(llava, stack):
    model, inputs = llava
    with pytest.raises(lg.StrategyRefused, match=r"needs an image.*guard.generate\(\*\*inputs\)"):
        Guard(model, None, stack).generate(input_ids=inputs["input_ids"][:, -4:], **SETTINGS)
    assert "forward" not in vars(model)


def test_a_model_that_cannot_generate():
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(lg.ModelRefused, match="no autoregressive generate"):
        Guard(model, None, "vcd")


def test_a_processor_missing_where_it_is_needed(llava):
    model, inputs = llava
    with pytest.raises(lg.ProcessorNeeded, match=r"Guard\(model, processor\)"):
        Guard(model, None, "icd").generate(**inputs, **SETTINGS)
    with pytest.raises(lg.ProcessorNeeded, match="needs the processor"):
        Guard(model, None, "vcd").inputs(images=None, text="a")


def test_right_padding(llava):
    model, inputs = llava
    inputs = dict(inputs)
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][:, -2:] = 0
    with pytest.raises(lg.InputError, match="padding_side = 'left'"):
        Guard(model, None, "vcd").generate(**inputs, **SETTINGS)


def test_a_users_cache_with_tokens_in_it(llava):
    model, inputs = llava
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=inputs["input_ids"][:, -3:], past_key_values=cache)
    with pytest.raises(lg.ModeRefused, match="already holds tokens"):
        Guard(model, None, "vcd").generate(**inputs, **SETTINGS, past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
        ({"custom_generate": "somebody/loop"}, "custom_generate"),
        ({"custom_generate": lambda model, input_ids, **_: input_ids}, "custom_generate"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
    ],
)
def test_modes_that_are_refused(llava, settings, words):
    model, inputs = llava
    with pytest.raises(lg.ModeRefused, match=words):
        Guard(model, None, "vcd").generate(**inputs, **SETTINGS, **settings)


class OtherCache(DynamicCache):
    """A kind of cache that nothing is known about."""


def test_batched_by_name_where_it_cannot_be_exact():
    model, inputs = tiny("llava")
    with pytest.raises(lg.ModeRefused, match="executor='sequential'"):
        Guard(model, None, "vcd", executor="batched").generate(**inputs, **SETTINGS, use_cache=False)
    with pytest.raises(lg.ModeRefused, match="would not be exact"):
        Guard(model, None, "vcd", executor="batched").generate(**inputs, **SETTINGS, past_key_values=OtherCache())
    with pytest.raises(lg.InputError, match="auto, batched, sequential"):
        Guard(model, None, "vcd", executor="fast")


@pytest.mark.parametrize("where", ["first", "later"])
def test_non_finite_logits(where):
    model, inputs = tiny("llava")
    calls = []

    def poison(module, args, output):
        calls.append(1)
        return output * float("nan") if where == "first" or len(calls) > 3 else output

    handle = model.get_output_embeddings().register_forward_hook(poison)
    with pytest.raises(lg.NonFiniteLogits, match="plain generate"):
        Guard(model, None, "vcd").generate(**inputs, **SETTINGS)
    handle.remove()


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (VCD(alpha=-1), "alpha.*greater than or equal to 0.*got -1"),
        (VCD(alpha=float("nan")), "alpha"),
        (VCD(beta=2), "beta"),
        (VCD(noise_step=1000), "noise_step.*less than 1000"),
        (ICD(place="behind"), "place"),
    ],
)
def test_parameters_out_of_range(llava, strategy, words):
    with pytest.raises(lg.StackError, match=words):
        Guard(llava[0], None, [strategy])


def test_a_prompt_that_grows_too_long_with_the_branch():
    model, inputs = tiny("llava")
    model.config.text_config.max_position_embeddings = inputs["input_ids"].shape[1] + 3 + len(EXTRA) - 1
    with pytest.raises(lg.InputError, match="passes the model's"):
        Guard(model, None, [Against("longer")]).generate(**inputs, **SETTINGS)


def test_arguments_given_twice_and_too_many(llava):
    model, inputs = llava
    guard = Guard(model, None, "vcd")
    with pytest.raises(lg.InputError, match="twice"):
        guard.generate(inputs["input_ids"], inputs=inputs["input_ids"])
    with pytest.raises(lg.ModeRefused, match="needs input_ids"):
        guard.generate(pixel_values=inputs["pixel_values"], **SETTINGS)


def test_a_report_before_any_call(llava):
    with pytest.raises(lg.InputError, match="No guarded call"):
        _ = Guard(llava[0], None, "vcd").report


def strategy(branch=None, terms=()):
    @dataclass(frozen=True)
    class Odd:
        name: ClassVar[str] = "odd"
        strength: Annotated[float, Field(ge=0)] = 1.0

        @hookimpl
        def branches(self, gen: lg.Generation) -> Iterable[Branch]:
            return [branch] if branch else []

        @hookimpl
        def terms(self, gen: lg.Generation) -> Iterable[lg.Term]:
            return [term(gen) if callable(term) else term for term in terms]

    return Odd()


@pytest.mark.parametrize(
    ("odd", "error", "words"),
    [
        (strategy(terms=[lg.Contrast("nowhere", 1.0)]), lg.PluginRejected, "No branch has the key 'nowhere'"),
        (strategy(terms=["vcd"]), lg.PluginRejected, "must yield Mix"),
        (strategy(terms=[lg.Mix("main", torch.ones(5))]), lg.PluginRejected, "does not fit the logits"),
        (strategy(terms=[lg.Bias(torch.ones(7))]), lg.PluginRejected, "does not fit the logits"),
        (strategy(terms=[lg.Restrict(torch.zeros(128))]), lg.NonFiniteLogits, "all removed"),
        (strategy(terms=[lg.Mix("main", None)]), lg.PluginRejected, "weight must be a finite number"),
        (strategy(branch="noise"), lg.PluginRejected, "must yield Branch"),
        (strategy(branch=Branch("x", pixels=lambda p, g: p[:1])), lg.InputError, "the shape it got"),
        (strategy(branch=Branch("x", pixels=lambda p, g: None)), lg.InputError, "NoneType"),
    ],
)
def test_what_a_strategy_may_get_wrong(llava, odd, error, words):
    model, inputs = llava
    with pytest.raises(error, match=words):
        Guard(model, None, [odd]).generate(**inputs, **SETTINGS)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "removed", "pixels": lambda p, g: p},
        {"picture": lambda p, g: p, "pixels": lambda p, g: p},
        {},
    ],
)
def test_branches_that_contradict_themselves(fields):
    with pytest.raises(lg.InputError, match="x"):
        Branch("x", **fields)


@pytest.mark.parametrize("key", ["main", ["a", "list"]])
def test_keys_that_cannot_name_a_branch(key):
    with pytest.raises(lg.InputError, match="key is hashable and not 'main'"):
        Branch(key, image="removed")


HOOK_VALUES = {
    lg.AttentionCapture: {"key": "a", "layers": (0.0, 1.0), "reduce": lambda weights, _: weights},
    lg.AttentionEdit: {"layers": (0.0, 1.0), "operation": "add"},
    lg.Bias: {"values": torch.zeros(128)},
    lg.Branch: {"key": "a", "image": "removed"},
    lg.Contrast: {"source": "a", "weight": 1.0},
    lg.HiddenEdit: {"site": "mlp", "edit": lambda hidden, _: hidden},
    lg.InputEdit: {"pixels": lambda pixels, _: pixels},
    lg.Insert: {"ids": (1,)},
    lg.Mix: {"source": "a", "weight": 1.0},
    lg.Plausible: {"beta": 0.1},
    lg.Readout: {"layers": (0.5,)},
    lg.Replace: {"ids": (1,)},
    lg.Restrict: {"keep": torch.ones(128)},
}


@pytest.mark.parametrize("kind", HOOK_VALUES, ids=lambda kind: kind.__name__)
def test_a_field_of_any_kind_is_taken_or_refused(kind):
    valid = HOOK_VALUES[kind]
    kind(**valid)
    for field in dataclasses.fields(kind):
        for value in (torch.ones(5, 7), torch.ones(()), torch.ones(3, device="meta"), [1], {}, object(), float("nan")):
            with contextlib.suppress(lg.GuardError):
                kind(**{**valid, field.name: value})


@pytest.mark.parametrize("term", [lg.Bias(torch.tensor(1.0)), lg.Restrict(torch.tensor(1.0))])
def test_a_single_number_is_no_value_per_token(llava, term):
    model, inputs = llava
    with pytest.raises(lg.PluginRejected, match="does not fit the logits"):
        Guard(model, None, [strategy(terms=[term])]).generate(**inputs, **SETTINGS)


@pytest.mark.parametrize("value", [["add"], {}, {"add"}, b"add", None])
@pytest.mark.parametrize("field", ["operation", "keys", "queries", "when", "stage"])
def test_choices_of_an_edit_that_are_no_text(field, value):
    with pytest.raises(lg.InputError, match=r"attention operation|cannot be"):
        lg.AttentionEdit(**{"layers": (0.0, 1.0), "operation": "add", field: value})


def test_a_hook_that_returns_a_single_value(llava):
    model, inputs = llava

    @dataclass(frozen=True)
    class Single:
        name: ClassVar[str] = "single"

        @hookimpl
        def terms(self, gen: lg.Generation) -> lg.Term:
            return lg.Mix("main", 1.0)

    with pytest.raises(lg.PluginRejected, match=r"single.terms must return a list, or yield"):
        Guard(model, None, [Single()]).generate(**inputs, **SETTINGS)


def test_an_annotation_that_cannot_be_checked(llava):
    @dataclass(frozen=True)
    class Holding:
        name: ClassVar[str] = "holding"
        tensor: torch.Tensor | None = None

    with pytest.raises(lg.StackError, match="holding: an annotation cannot be checked"):
        Guard(llava[0], None, [Holding()])


@pytest.mark.parametrize("value", ["1", True, b"1", None, [1.0]])
def test_only_numbers_are_numbers(llava, value):
    with pytest.raises(lg.StackError, match="alpha: input should be a valid number"):
        Guard(llava[0], None, [VCD(alpha=value)])
    assert type(lg.Stack.of({"name": "vcd", "params": {"alpha": 1}}).strategies[0].alpha) is float


def test_a_failed_call_leaves_no_report(llava):
    model, inputs = llava
    guard = Guard(model, None, "vcd")
    guard.generate(**inputs, **SETTINGS)
    with pytest.raises(lg.StrategyRefused):
        guard.generate(input_ids=inputs["input_ids"][:, -3:], **SETTINGS)
    with pytest.raises(lg.InputError, match="No guarded call"):
        _ = guard.report


def test_one_key_for_two_different_branches(llava):
    model, inputs = llava

    @dataclass(frozen=True)
    class Other:
        name: ClassVar[str] = "other"

        @hookimpl
        def branches(self, gen: lg.Generation) -> Iterable[Branch]:
            yield Branch("noised", tokens=(Insert((5,)),))

    with pytest.raises(lg.PluginRejected, match="share the key 'noised'"):
        Guard(model, None, [Against("noised"), Other()]).generate(**inputs, **SETTINGS)


def test_a_neutral_strategy_and_a_blind_model_warn(llava):
    model, inputs = llava
    with pytest.warns(lg.NoEffectWarning, match="'vcd' changed no logit") as caught:
        Guard(model, None, [VCD(alpha=0)]).generate(**inputs, **SETTINGS)
    assert caught[0].filename == __file__
    blind, inputs = tiny("llava")
    with torch.no_grad():
        for parameter in blind.model.multi_modal_projector.parameters():
            parameter.zero_()
    with pytest.warns(lg.NoEffectWarning, match="the image does not change what this model says"):
        Guard(blind, None, [VCD(beta=0.5)]).generate(**inputs, **SETTINGS)
