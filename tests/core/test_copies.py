"""Copies of a model made while a call runs start clean, and wrappers of others before, during and after a call stay exact."""

import copy
import functools
import io
import pickle
import threading

import pytest
import torch
from gold import SUPPRESSED, Against
from mechanisms import MECHANISMS
from transformers import DynamicCache, StoppingCriteria
from versions import editing_towers

from lvlm_guard import Guard, ModeRefused
from lvlm_guard.testing import tiny

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED}


class During(StoppingCriteria):
    """Calls a function once, after the second token."""

    def __init__(self, function):
        self.function, self.calls, self.result = function, 0, None

    def __call__(self, ids, scores, **_):
        self.calls += 1
        if self.calls == 2:
            self.result = self.function()
        return torch.zeros(ids.shape[0], dtype=torch.bool)


def run_during(guard, inputs, function):
    """Return what a guarded call answers and what the function returned in the middle of it."""
    criterion = During(function)
    output = guard.generate(**inputs, **SETTINGS, stopping_criteria=[criterion])
    assert criterion.calls >= 2
    return output, criterion.result


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def in_a_thread(model):
    copies = []
    worker = threading.Thread(target=lambda: copies.append(copy.deepcopy(model)))
    worker.start()
    worker.join()
    return copies[0]


def traces(model):
    """Every name on every part, and what hooks and configs hold."""
    found = []
    for name, part in model.named_modules():
        config = getattr(part, "config", None)
        attention = getattr(config, "_attn_implementation", None)
        hooks = [len(part._forward_hooks), len(part._forward_pre_hooks), len(part._forward_hooks_with_kwargs)]
        found.append((name, sorted(vars(part)), hooks, type(attention), attention))
    return found


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def fresh():
    """What a model that only ever generated plainly looks like: transformers leaves hooks of its own on some."""
    return {name: describe(name) for name in ("llava", "qwen2_vl")}


def describe(architecture):
    model, inputs = tiny(architecture)
    model.generate(**inputs, **SETTINGS)
    twin = copy.deepcopy(model)
    return traces(twin), logits(twin, inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [copy.deepcopy, pickled, saved, in_a_thread])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_copy_made_during_a_call_is_a_plain_model(fresh, mechanism, make):
    architecture = "qwen2_vl" if make in (pickled, saved) else "llava"  # this llava cannot be pickled once it ran
    model, inputs = tiny(architecture)
    with editing_towers():
        _, twin = run_during(Guard(model, None, MECHANISMS[mechanism]), inputs, lambda: make(model))
    wanted, wanted_logits = fresh[architecture]
    assert traces(twin) == wanted
    assert torch.equal(logits(twin, inputs), wanted_logits)
    assert traces(model) == wanted


def replicate(model):
    """Return what DataParallel runs on another device, with a head of its own."""
    replica = model._replicate_for_data_parallel()
    replica.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    torch.nn.init.normal_(replica.lm_head.weight, generator=torch.Generator().manual_seed(1))
    return replica


@pytest.mark.parametrize("when", ["during", "attached"])
def test_a_replica_for_another_device_runs_itself_and_unguarded(when):
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Against("noised")])
    wanted = replicate(model).generate(**inputs, **SETTINGS)
    assert not torch.equal(model.generate(**inputs, **SETTINGS), wanted), "no power"
    if when == "during":
        _, replica = run_during(guard, inputs, lambda: replicate(model))
    else:
        with guard.attached():
            replica = replicate(model)
            assert torch.equal(replica.generate(**inputs, **SETTINGS), wanted)
    assert torch.equal(replica.generate(**inputs, **SETTINGS), wanted)
    assert not {"forward", "generate", "__getstate__"} & set(vars(replica))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mechanism", ["branch", "attention", "hidden", "vision", "readout", "search"])
def test_a_copy_made_inside_a_forward_is_a_plain_model_there_too(fresh, mechanism):
    model, inputs = tiny("llava")
    answers = []

    def copy_and_run(*_):
        if not answers:
            answers.append(None)
            twin = copy.deepcopy(model)
            twin.get_decoder()._forward_pre_hooks.clear()
            answers[0] = logits(twin, inputs)

    handle = model.get_decoder().register_forward_pre_hook(copy_and_run)
    with editing_towers():
        Guard(model, None, MECHANISMS[mechanism]).generate(**inputs, max_new_tokens=2, do_sample=False)
    handle.remove()
    assert torch.equal(answers[0], fresh["llava"][1])


@pytest.mark.filterwarnings("ignore")
def test_a_config_copied_during_a_call_names_the_attention_it_had():
    model, inputs = tiny("llava")
    guard = Guard(model, None, MECHANISMS["attention"])
    _, (deep, plain) = run_during(
        guard, inputs, lambda: (copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config)))
    )
    for config in (deep, plain):
        assert config.get_text_config()._attn_implementation == model.config.get_text_config()._attn_implementation
        assert type(config.get_text_config()._attn_implementation) is str


def test_a_cache_copied_after_a_call_reorders_itself_alone():
    model, inputs = tiny("llava")
    cache = DynamicCache(config=model.config.get_text_config())
    guard = Guard(model, None, [Against("noised")])
    _, twin = run_during(guard, {**inputs, "past_key_values": cache}, lambda: copy.deepcopy(cache))
    assert "reorder_cache" not in vars(twin)
    assert not any("update" in vars(layer) for layer in (*twin.layers, *cache.layers))


def partial_wrapper(model):
    old = model.forward
    model.forward = functools.update_wrapper(functools.partial(old), old)


def decorator(model):
    old = model.forward

    @functools.wraps(old)
    def forward(*args, **kwargs):
        return old(*args, **kwargs)

    model.forward = forward


def accelerate_hook(model):
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model, hooks.ModelHook())


def compiled(model):
    model.forward = torch.compile(model.forward, backend="eager")


class Controller:
    """Wraps as nnsight does: an object with the metadata of the class's own forward in place of the instance's."""

    def __init__(self, module):
        self.module, self.forward = module, module.forward
        functools.update_wrapper(self, type(module).forward)

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


def controller(model):
    for module in model.modules():
        module.forward = Controller(module)


WRAPPERS = {
    "partial": partial_wrapper, "decorator": decorator, "accelerate": accelerate_hook, "controller": controller,
    "compiled": compiled,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("when", "wrap"),
    [
        pytest.param(when, wrap, marks=[pytest.mark.slow] if (when, wrap) == ("before", "compiled") else [])
        for when in ("before", "during")
        for wrap in WRAPPERS
    ],
)
def test_forwards_that_others_wrap_are_guarded_once(wrap, when):
    model, inputs = tiny("llava")
    plain = model.generate(**inputs, **SETTINGS)
    guard = Guard(model, None, [Against("noised")])
    wanted = guard.generate(**inputs, **SETTINGS)
    assert not torch.equal(plain, wanted), "no power"
    if when == "before":
        WRAPPERS[wrap](model)
        assert torch.equal(guard.generate(**inputs, **SETTINGS), wanted)
    else:
        output, _ = run_during(guard, inputs, lambda: WRAPPERS[wrap](model))
        assert torch.equal(output, wanted)
    for _ in range(2):
        assert torch.equal(guard.generate(**inputs, **SETTINGS), wanted)
        assert torch.equal(model.generate(**inputs, **SETTINGS), plain)
    if wrap in ("partial", "accelerate"):
        twin = copy.deepcopy(model)
        assert torch.equal(twin.generate(**inputs, **SETTINGS), plain)
        assert torch.equal(Guard(twin, None, [Against("noised")]).generate(**inputs, **SETTINGS), wanted)


def test_a_forward_put_back_after_the_call_that_wrapped_it_is_inert():
    model, inputs = tiny("llava")
    plain = model.generate(**inputs, **SETTINGS)
    guard = Guard(model, None, [Against("noised")])
    wanted, ours = run_during(guard, inputs, lambda: model.forward)
    model.forward = ours
    twin = copy.deepcopy(model)
    assert torch.equal(model.generate(**inputs, **SETTINGS), plain)
    assert torch.equal(guard.generate(**inputs, **SETTINGS), wanted)
    assert "forward" not in vars(model)
    with torch.no_grad():
        twin.get_output_embeddings().weight.neg_()
    assert torch.allclose(logits(twin, inputs), -logits(model, inputs), atol=1e-4)


def test_a_forward_replaced_during_a_call_is_an_error_and_not_half_a_guard():
    model, inputs = tiny("llava")
    decorator(model)
    guard = Guard(model, None, [Against("noised")])
    with pytest.raises(ModeRefused, match="replaced while the call ran"):
        run_during(guard, inputs, lambda: vars(model).pop("forward"))
    assert "forward" not in vars(model)
