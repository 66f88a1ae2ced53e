"""Models as people load them: offloaded, adapted, quantised, in half precision, with tied weights, copied, pickled, traced."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import pickle
from typing import Any, ClassVar

import pytest
import torch
from gold import SUPPRESSED, Against, by_hand, contrast, disturbed
from odd_models import CACHE

from lvlm_guard import Branch, Guard, InputError, hookimpl
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.intact import exploding, fingerprint
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import inputs_for

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}
KINDS = ("noised", "longer", "blind")
IMAGE_AND_LONGER = ("noised", "longer")


def answers(model, inputs, kind="noised", **options):
    """What the guard answers in one batch and one by one, and the report of the first; plain generate says something else."""
    plain = model.generate(**inputs, **SETTINGS, **options)
    guard = Guard(model, None, [Against(kind)])
    output, report = guard.generate_with_report(**inputs, **SETTINGS, **options)
    assert not torch.equal(plain, output), "no power"
    one_by_one = Guard(model, None, [Against(kind)], executor="sequential").generate(**inputs, **SETTINGS, **options)
    return output, one_by_one, report


def recompute(model, inputs, kind):
    """The answer by the formula, with nothing of the library running."""
    expected = []
    for step in range(5):
        logits = contrast([next_logits(model, variant, expected) for variant in (inputs, by_hand(kind, inputs))], step)
        logits[SUPPRESSED] = -torch.inf
        expected.append(int(logits.argmax()))
    return expected


# Offloaded


def place_on_disk(model, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def place_by_map(model, folder):
    accelerate = pytest.importorskip("accelerate")
    language = model.model.language_model
    places = {"lm_head": "cpu"}
    places |= {f"model.{name}": "disk" for name, _ in model.model.named_children() if name != "language_model"}
    places |= {f"model.language_model.{name}": "cpu" for name, _ in language.named_children() if name != "layers"}
    places |= {f"model.language_model.layers.{at}": ("cpu", "disk")[at % 2] for at in range(len(language.layers))}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.filterwarnings("ignore:You are calling .generate")  # 4.57 looks at where the weights rest
@pytest.mark.parametrize("place", [place_on_disk, place_by_map])
def test_offloaded_weights_answer_as_resident_ones_and_the_offload_stays(place, tmp_path):
    model, inputs = tiny("llava")
    wanted = {kind: answers(model, inputs, kind)[0] for kind in KINDS}
    place(model, tmp_path)
    hooked = {name: vars(part).get("forward") for name, part in model.named_modules()}
    assert any(hooked.values())
    for kind in KINDS:
        output, one_by_one, report = answers(model, inputs, kind)
        assert torch.equal(output, wanted[kind])
        assert torch.equal(one_by_one, wanted[kind])
        assert report.executor == "batched"
    assert {name: vars(part).get("forward") for name, part in model.named_modules()} == hooked
    assert all(parameter.device.type == "meta" for parameter in model.model.vision_tower.parameters())


# Adapted


def adapt(names=("one",), targets=r".*language_model.*(q_proj|v_proj)"):
    peft = pytest.importorskip("peft")
    model, _ = tiny("llava")
    torch.manual_seed(0)
    configs = [peft.LoraConfig(target_modules=targets, r=2 + at, init_lora_weights=False) for at, _ in enumerate(names)]
    adapted = peft.get_peft_model(model, configs[0], adapter_name=names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        adapted.add_adapter(name, config)
    return adapted.eval()


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_adapters_of_their_own_answer_as_they_do_alone(kind, mode):
    model = adapt(["one", "other"])
    rows = [inputs_for("llava", model.base_model.model, 1, text=text, seed=text) for text in (3, 6)]
    output, one_by_one, report = answers(model, left_padded(rows), kind, adapter_names=["one", "other"], **mode)
    assert (report.executor, report.reason.split()[0]) == ("sequential", "adapter_names")
    assert torch.equal(output, one_by_one)
    for row, adapter, ids in zip(rows, ("one", "other"), output, strict=True):
        model.set_adapter(adapter)
        alone = Guard(model, None, [Against(kind)]).generate(**row, **SETTINGS, **mode)
        assert ids.tolist()[-5:] == alone[0].tolist()[-5:]


@pytest.mark.parametrize("where", ["model", "adapter name"])
def test_an_adapted_model_is_as_it_was_after_an_exception(where):
    model = adapt(["one", "other"])
    inputs = inputs_for("llava", model.base_model.model, 2)
    guard = Guard(model, None, [Against("noised")])
    names = ["one", "other"]
    wanted = guard.generate(**inputs, **SETTINGS, adapter_names=names)
    before = fingerprint(model), [list(part._forward_pre_hooks) for part in model.modules()]
    if where == "model":
        with exploding(model.base_model.model):
            guard.generate(**inputs, **SETTINGS, adapter_names=names)
    else:
        with pytest.raises(ValueError, match="non-existing adapter"):
            guard.generate(**inputs, **SETTINGS, adapter_names=["one", "unheard of"])
    assert (fingerprint(model), [list(part._forward_pre_hooks) for part in model.modules()]) == before
    assert torch.equal(guard.generate(**inputs, **SETTINGS, adapter_names=names), wanted)


PROMPTS = {
    "PromptTuningConfig": {},
    "PrefixTuningConfig": {
        "token_dim": 32, "num_layers": 3, "num_attention_heads": 2, "num_transformer_submodules": 1,
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", IMAGE_AND_LONGER)
@pytest.mark.parametrize("config", PROMPTS)
def test_learned_prompts_and_prefixes_are_those_of_a_recompute(config, kind):
    peft = pytest.importorskip("peft")
    if CACHE == "cache":
        pytest.skip("PEFT looks for the cache under its old name, and forgets or repeats its prompts in plain generate")
    settings = getattr(peft, config)(task_type="CAUSAL_LM", num_virtual_tokens=3, **PROMPTS[config])
    for seed in range(9):  # versions of transformers draw other weights from a seed
        base, inputs = tiny("llava")
        unadapted = base.generate(**inputs, **SETTINGS)
        torch.manual_seed(seed)
        model = peft.get_peft_model(base, settings).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(6 if "prompt" in name else 1)
        if not torch.equal(model.generate(**inputs, **SETTINGS), unadapted):
            break
    else:
        pytest.fail("no power")
    output, one_by_one, _ = answers(model, inputs, kind)
    assert output[0, -5:].tolist() == one_by_one[0, -5:].tolist() == recompute(model, inputs, kind)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", ["noised", "masked"])
def test_learned_prompts_count_in_masks(kind):
    peft = pytest.importorskip("peft")
    if CACHE == "cache":
        pytest.skip("PEFT looks for the cache under its old name, and forgets or repeats its prompts in plain generate")
    base, _ = tiny("llava")
    rows = [inputs_for("llava", base, 1, text=text, seed=text) for text in (11, 4)]
    settings = {**SETTINGS, "pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(6 if "prompt" in name else 1)
    for inputs in (rows[0], left_padded(rows)):
        output, one_by_one = (
            Guard(model, None, [Against(kind)], executor=executor).generate(**inputs, **settings)
            for executor in ("auto", "sequential")
        )
        plain = model.generate(**inputs, **settings)
        assert (one_by_one.logits[1] - plain.logits[1]).abs().max() > 0.1
        if len(output.sequences) == 1:
            assert one_by_one.sequences[0, -5:].tolist() == recompute(model, inputs, kind)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(one_by_one.logits), rtol=1e-4, atol=1e-4)


@dataclasses.dataclass(frozen=True)
class Reads:
    """Keep the logits of the prompt, run once by itself."""

    name: ClassVar[str] = "reads"
    seen: ClassVar[list[Any]] = []

    @hookimpl
    def start(self, gen):
        self.seen.append(gen.prompt_states().logits)
        self.seen.append(gen.prompt_states(Branch("noised", pixels=disturbed)).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["learned prompt", "adapters"])
def test_a_prompt_that_is_run_by_itself_sees_what_was_adapted(way):
    if way == "adapters":
        model, more = adapt(["one", "other"]), {"adapter_names": ["one", "other"]}
        inputs = inputs_for("llava", model.base_model.model, 2)
    else:
        peft, more = pytest.importorskip("peft"), {}
        base, inputs = tiny("llava")
        model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    Reads.seen.clear()
    settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **more}
    Guard(model, None, [Reads()]).generate(**inputs, **settings)
    for pixels, logits in zip((inputs["pixel_values"], disturbed(inputs["pixel_values"])), Reads.seen, strict=True):
        wanted = model.generate(**{**inputs, "pixel_values": pixels}, **settings).logits[0]
        assert torch.allclose(logits, wanted, atol=1e-4)


# Quantised


def replace_linears(model, make):
    for part in list(model.model.language_model.modules()):
        for name, child in list(part.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(part, name, make(child))


def eight_bits(layer):
    modules = pytest.importorskip("bitsandbytes").nn
    small = modules.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
    small.weight = modules.Int8Params(layer.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    return small.to("cpu")


def four_bits(layer):
    modules = pytest.importorskip("bitsandbytes").nn
    small = modules.Linear4bit(
        layer.in_features, layer.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32
    )
    small.weight = modules.Params4bit(layer.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    return small.to("cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", IMAGE_AND_LONGER)
@pytest.mark.parametrize("make", [eight_bits, four_bits])
def test_bitsandbytes_decodes_in_one_batch_what_it_decodes_one_by_one(make, kind):
    model, inputs = tiny("llava")
    replace_linears(model, make)
    output, one_by_one, report = answers(model, inputs, kind)
    assert report.executor == "batched", report.reason
    assert torch.equal(output, one_by_one)
    assert output[0, -5:].tolist() == recompute(model, inputs, kind)


def torchao_config(name):
    quantisation = pytest.importorskip("torchao.quantization")
    configs = {
        "weights": (quantisation.Int8WeightOnlyConfig, {}),
        "activations by row": (quantisation.Int8DynamicActivationInt8WeightConfig, {}),
        "activations by tensor": (
            quantisation.Int8DynamicActivationInt8WeightConfig,
            {"granularity": quantisation.PerTensor()},
        ),
    }
    config, settings = configs[name]
    return quantisation.quantize_, config(**settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", IMAGE_AND_LONGER)
@pytest.mark.parametrize(
    ("name", "executor"),
    [("weights", "batched"), ("activations by row", "batched"), ("activations by tensor", "sequential")],
)
def test_torchao_shares_a_batch_only_where_rows_do_not_see_each_other(name, executor, kind):
    quantise, config = torchao_config(name)
    model, inputs = tiny("llava")
    assert answers(model, inputs, kind)[2].executor == "batched"  # remembered of the model as it was
    quantise(model.model.language_model, config)
    output, one_by_one, report = answers(model, inputs, kind)
    assert report.executor == executor, report.reason
    assert torch.equal(output, one_by_one)


class ByTensor(torch.nn.Linear):
    """Rounds activations by the largest of the whole batch, and looks like any other layer."""

    def forward(self, hidden):
        scale = hidden.abs().amax() / 127
        return super().forward((hidden / scale).round() * scale)


def test_a_layer_that_quantises_by_the_batch_is_found_by_what_it_does():
    model, inputs = tiny("llava")
    for part in model.model.language_model.modules():
        if type(part) is torch.nn.Linear:
            part.__class__ = ByTensor
    output, one_by_one, report = answers(model, inputs)
    assert report.executor == "sequential"
    assert "quantised by the batch" in report.reason
    assert torch.equal(output, one_by_one)


# In half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llava", "longer"), ("gemma3", "noised"), pytest.param("qwen2_vl", "blind", marks=pytest.mark.slow)],
)
def test_rows_padded_on_the_left_are_finite_and_what_they_are_alone_but_for_rounding(architecture, kind, dtype):
    model, _ = tiny(architecture)
    model = model.to(dtype)
    rows = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    rows = [
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in row.items()} for row in rows
    ]
    settings = {**SETTINGS, "max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    guard = Guard(model, None, [Against(kind)])
    output = guard.generate(**left_padded(rows), **settings)
    assert all(bool(torch.isfinite(logits).all()) for logits in output.logits)
    assert output.logits[0].dtype == torch.float32
    alone = torch.stack([guard.generate(**row, **settings).logits[0][0] for row in rows])
    plain = torch.stack([model.generate(**row, **settings).logits[0][0].float() for row in rows])
    effects = (output.logits[0] - plain).abs().amax(1)
    assert effects.min() > 0.1
    assert (output.logits[0] - alone).abs().max() < 0.1 * effects.max()


# Tied, copied, pickled, traced


LEAVES_HOOKS = importlib.util.find_spec("transformers.utils.output_capturing") is not None
"""Whether transformers leaves hooks of its own in a model that ran."""


@pytest.fixture
def tied():
    model, inputs = tiny("llava")
    model.lm_head.weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    return model, inputs


def test_tied_embeddings_stay_tied_and_answers_are_those_of_a_recompute(tied):
    model, inputs = tied
    output, one_by_one, _ = answers(model, inputs)
    assert output[0, -5:].tolist() == one_by_one[0, -5:].tolist() == recompute(model, inputs, "noised")
    for twin in (copy.deepcopy(Guard(model)), pickle.loads(pickle.dumps(Guard(model)))):
        assert twin.model.lm_head.weight is twin.model.get_input_embeddings().weight
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda guard: pickle.loads(pickle.dumps(guard))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("when", ["after a call", "attached"])
def test_a_guard_that_was_used_can_be_copied_and_pickled(make, when):
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Against("noised")])
    wanted, plain = guard.generate(**inputs, **SETTINGS), model.generate(**inputs, **SETTINGS)
    assert any(part._forward_hooks for part in model.modules()) == LEAVES_HOOKS
    hooks = [list(part._forward_hooks.values()) for part in model.modules()]
    if when == "attached":
        with guard.attached():
            twin = make(guard)
            assert torch.equal(twin.model.generate(**inputs, **SETTINGS), plain)
    else:
        twin = make(guard)
    assert [list(part._forward_hooks.values()) for part in model.modules()] == hooks
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert torch.equal(twin.model.generate(**inputs, **SETTINGS), plain)
    assert torch.equal(twin.generate(**inputs, **SETTINGS), wanted)
    shown = {"output_hidden_states": True, "return_dict_in_generate": True}
    assert len(twin.model.generate(**inputs, **SETTINGS, **shown).hidden_states[0]) == 4  # captured anew


def test_hooks_that_cannot_be_pickled_are_named():
    model, _ = tiny("llava")
    guard = Guard(model)
    model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"lambda>, which stands on lm_head .* save_pretrained"):
        pickle.dumps(guard)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_nnsight_traces_is_guarded_inside_and_outside():
    nnsight = pytest.importorskip("nnsight")
    model, inputs = tiny("llava")
    plain = model.generate(**inputs, **SETTINGS)
    wanted = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    traced = nnsight.NNsight(model)
    for guarded in (model, traced):
        assert torch.equal(Guard(guarded, None, [Against("noised")]).generate(**inputs, **SETTINGS), wanted)
    assert torch.equal(model.generate(**inputs, **SETTINGS), plain)


def test_strategies_of_a_pickled_guard_are_equal():
    guard = Guard(tiny("llava")[0], None, [Against("noised", weight=0.5)])
    (strategy,) = pickle.loads(pickle.dumps(guard)).stack
    assert dataclasses.asdict(strategy) == {"kind": "noised", "weight": 0.5, "beta": 0.0}
