"""Models spread over two devices, as `device_map` spreads them; the devices are pretended ones."""

import pytest
import torch
from gold import SUPPRESSED
from PIL import Image
from toy_processor import toy_processor

from lvlm_guard import Guard
from lvlm_guard.fitting import Demonstration, fit
from lvlm_guard.testing import tiny
from lvlm_guard.testing.devices import FIRST, SECOND, DevicesApart, move, pretended, spread

SETTINGS = {
    "max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
STACKS = {
    "branch": ["vcd"],
    "attention and hidden": ["pai", {"name": "vsv", "params": {"strength": 1.0}}],
    "readouts": ["dola", "deco"],
    "probes": ["sid", "avisc"],
    "online readouts": [{"name": "memvr", "params": {"threshold": 0.0, "layers": (0.0, 1.0)}}],
}
TOLERANCE = 1e-3  # demoted tokens lie at 1e4, where fp32 has no finer steps


def apart(one, other):
    pairs = [(mine.cpu(), theirs) for mine, theirs in zip(one.logits, other.logits, strict=True)]
    return max(float((mine - theirs).nan_to_num(nan=0.0).abs().max()) for mine, theirs in pairs)


@pytest.mark.parametrize(
    "mode",
    [{}, *(pytest.param(mode, marks=pytest.mark.slow) for mode in ({"num_beams": 2}, {"use_cache": False}))],
    ids=["greedy", "beams", "no cache"],
)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", ["qwen2_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_spread_model_says_the_same(name, stack, mode):
    pytest.importorskip("accelerate")
    whole, inputs = tiny(name)
    guard = Guard(whole, None, STACKS[stack], executor="sequential" if mode else "auto")
    wanted = guard.generate(**inputs, **SETTINGS, **mode)
    assert apart(whole.generate(**inputs, **SETTINGS, **mode), wanted) > 0.1, "no power"
    model, _ = tiny(name)
    with pretended():
        spread(model)
        assert {parameter.device for parameter in model.parameters()} == {FIRST, SECOND}
        got = Guard(model, None, STACKS[stack], executor=guard.executor).generate(**move(inputs), **SETTINGS, **mode)
    assert torch.equal(got.sequences.cpu(), wanted.sequences)
    assert apart(got, wanted) < TOLERANCE


def test_samples_of_a_spread_model_are_those_of_a_whole_one():
    pytest.importorskip("accelerate")
    whole, inputs = tiny("llava")
    sampled = {**SETTINGS, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    wanted = Guard(whole, None, ["vcd"]).generate(**inputs, **sampled)
    model, _ = tiny("llava")
    with pretended():
        spread(model)
        torch.manual_seed(0)
        got = Guard(model, None, ["vcd"]).generate(**move(inputs), **sampled)
    assert torch.equal(got.sequences.cpu(), wanted.sequences)


@pytest.mark.parametrize("kind", ["adhh", "nullu", "vti"])
def test_a_spread_model_is_fitted_alike(kind):
    pytest.importorskip("accelerate")
    pictures = [Image.linear_gradient("L").convert("RGB").rotate(angle) for angle in (0, 90)]
    answers = [("a b c d", "a e c f"), ("b c a", "b c d e a")]
    shown = [Demonstration(picture, "a g", *both) for picture, both in zip(pictures, answers, strict=True)]
    wanted = fit(kind, tiny("llava")[0], toy_processor(), shown, split="made up").tensors
    model, _ = tiny("llava")
    with pretended():
        spread(model)
        got = fit(kind, model, toy_processor(), shown, split="made up").tensors
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(got[name].cpu().abs().float(), tensor.abs().float(), atol=1e-4), (
            name
        )  # a direction's sign is free


class TestPretence:
    """What torch refuses on two devices is refused here."""

    @pytest.fixture(autouse=True)
    def pretending(self):
        with pretended():
            yield

    def test_tensors_apart_do_not_meet(self):
        here, there = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        for meet in (
            torch.add,
            torch.equal,
            lambda *both: torch.stack(both),
            lambda *both: torch.where(here > 0, *both),
        ):
            with pytest.raises(DevicesApart, match="lazy:0 and lazy:1"):
                meet(here, there)
        with pytest.raises(DevicesApart, match="cpu and lazy:0"):
            here + torch.ones(2)

    def test_what_torch_lets_meet_meets(self):
        here = torch.arange(4.0, device=FIRST)
        assert (here * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
        assert here[torch.tensor([3, 0])].tolist() == [3, 0]
        with pytest.raises(DevicesApart):
            here[torch.tensor([3, 0], device=SECOND)]
        with pytest.raises(DevicesApart):
            torch.arange(4.0)[torch.tensor([3, 0], device=FIRST)]

    def test_moves_and_views_keep_their_values(self):
        here = torch.zeros(2, 3, device=FIRST)
        here[0, [True, False, True]] = torch.tensor(5.0, device=FIRST)
        here[1].copy_(torch.tensor([1.0, 2.0, 3.0], device=SECOND))
        there = here.to(SECOND)
        assert (here.device, there.device, there.cpu().device.type) == (FIRST, SECOND, "cpu")
        assert there.tolist() == [[5, 0, 5], [1, 2, 3]]
        there += 1
        assert here[0, 0].item() == 5
        assert there.new_tensor([4]).device == SECOND
