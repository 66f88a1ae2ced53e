"""Static caches: main and branches as rows of one, compiled where generate compiles by itself."""

import logging
import warnings

import pytest
import torch
from gold import SUPPRESSED, Against
from packaging.version import Version
from torch._dynamo.utils import counters
from transformers import CompileConfig

from lvlm_guard import Guard, UncompiledWarning
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import ragged

SETTINGS = {
    "max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
STATIC = {**SETTINGS, "cache_implementation": "static"}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "several": {"num_return_sequences": 2, "do_sample": True},
}
TOLERANCE = 1e-4


def run(model, inputs, stack, settings):
    guard = Guard(model, None, stack)
    torch.manual_seed(3)
    return guard.generate(**inputs, **settings), guard.report


def apart(one, other):
    pairs = zip(one.logits, other.logits, strict=True)
    return max(float((mine - theirs).nan_to_num(nan=0.0).abs().max()) for mine, theirs in pairs)  # both -inf: equal


@pytest.mark.parametrize(
    ("architecture", "executor"),
    [
        ("llava", "batched"),
        ("qwen2_vl", "batched"),
        pytest.param("idefics3", "batched", marks=pytest.mark.slow),
        pytest.param("internvl", "batched", marks=pytest.mark.slow),
        ("gemma3", "sequential"),
        pytest.param("mllama", "sequential", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["noised", "longer", "blind"])
def test_a_ragged_batch_under_a_static_cache_equals_a_growing_one(architecture, executor, kind):
    model, _ = tiny(architecture)
    inputs = ragged(architecture, model)[1]
    growing, _ = run(model, inputs, [Against(kind)], SETTINGS)
    static, report = run(model, inputs, [Against(kind)], STATIC)
    plain = model.generate(**inputs, **SETTINGS)
    assert apart(static, growing) < TOLERANCE < 0.1 < apart(static, plain)
    assert torch.equal(static.sequences, growing.sequences)
    assert report.executor == executor, report.reason


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_generate_are_the_same(mode):
    model, inputs = tiny("llava")
    growing, _ = run(model, inputs, [Against("blind")], SETTINGS | MODES[mode])
    static, report = run(model, inputs, [Against("blind")], STATIC | MODES[mode])
    assert report.executor == "batched"
    assert torch.equal(static.sequences, growing.sequences)
    assert apart(static, growing) < TOLERANCE


@pytest.mark.filterwarnings("ignore::lvlm_guard.NoEffectWarning")
@pytest.mark.parametrize("kind", ["noised", "longer"])
def test_mains_own_cache_is_left_as_plain_generate_leaves_it(kind):
    model, inputs = tiny("llava")
    guarded, _ = run(model, inputs, [Against(kind, weight=0.0)], STATIC)
    plain = model.generate(**inputs, **STATIC)
    assert torch.equal(guarded.sequences, plain.sequences)
    length = int(plain.past_key_values.get_seq_length())
    assert int(guarded.past_key_values.get_seq_length()) == length == plain.sequences.shape[1] - 1
    assert "get_seq_length" not in vars(guarded.past_key_values)
    for mine, theirs in zip(guarded.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert mine.keys.shape == theirs.keys.shape
        assert torch.allclose(mine.keys[:, :, :length], theirs.keys[:, :, :length], atol=1e-4)
        assert torch.allclose(mine.values[:, :, :length], theirs.values[:, :, :length], atol=1e-4)


class TestCompilation:
    """On a CPU, where transformers compiles only when told to; graphs run as they are."""

    @pytest.fixture(autouse=True)
    def _fresh(self):
        torch._dynamo.reset()
        counters.clear()
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)
        torch._dynamo.reset()

    @pytest.fixture
    def compiled(self):
        config = CompileConfig(backend="eager", mode=None)
        config._compile_all_devices = True
        return {**STATIC, "compile_config": config}

    @pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="torch 2.6 compiles some steps again")
    @pytest.mark.parametrize(
        "stack", [[], [Against("noised")], pytest.param([Against("longer")], marks=pytest.mark.slow)]
    )
    def test_one_graph_serves_every_token_of_every_call(self, compiled, stack):
        model, inputs = tiny("llava")
        eager, _ = run(model, inputs, stack, SETTINGS)
        first, _ = run(model, inputs, stack, compiled)
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
        again, report = run(model, inputs, stack, compiled)
        assert counters["stats"]["unique_graphs"] == 1
        assert apart(first, eager) < TOLERANCE
        assert torch.equal(torch.stack(again.logits), torch.stack(first.logits))
        assert report.executor == ("batched" if stack else "none")
        assert ("_compiled_call" in vars(model)) == (not stack), "without a stack, generate compiles by itself"

    def test_work_inside_the_layers_runs_uncompiled_and_says_so(self, compiled):
        model, inputs = tiny("llava")
        stack = [{"name": "vsv", "params": {"strength": 1.0}}]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UncompiledWarning)
            growing, _ = run(model, inputs, stack, SETTINGS)
        with pytest.warns(UncompiledWarning, match="works inside the layers"):
            guarded, _ = run(model, inputs, stack, compiled)
        assert apart(guarded, growing) < TOLERANCE
        assert not counters["stats"]["unique_graphs"]

    def test_compilation_is_left_off_where_the_call_says_so(self, compiled):
        model, inputs = tiny("llava")
        run(model, inputs, [Against("noised")], {**compiled, "disable_compile": True})
        assert not counters["stats"]["unique_graphs"]
