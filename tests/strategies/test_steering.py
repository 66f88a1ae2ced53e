"""Steering against twins written from the published formulas, and what an artefact of another model does."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
from against_twin import ARCHITECTURES, check
from lvlm_guard_reweighting import PAI
from lvlm_guard_steering import VSV, VTI, Nullu
from twin import Twin

from lvlm_guard import Artefact, Guard, StrategyRefused
from lvlm_guard.strategy.artefacts import config_hash
from lvlm_guard.testing import ARCHITECTURES as KNOWN
from lvlm_guard.testing import StrategyContract, tiny
from lvlm_guard.testing.contract import Words, ragged

TOKENS = {"llava": 26, "qwen2_vl": 1, "gemma3": 16}
"""Tokens of each vision tower; where patches of several pictures are laid end to end, their mean."""


def made(folder, kind, architecture, model, tokens=None):
    """An artefact of random directions for a tiny model."""
    draw = torch.Generator().manual_seed(5)
    if kind == "vti":
        shape = (2, TOKENS[architecture] if tokens is None else tokens, 32)
        tensors = {name: torch.randn(one, generator=draw) for name, one in [("decoder", (3, 32)), ("vision", shape)]}
    else:
        tensors = {"directions": torch.linalg.qr(torch.randn(3, 32, 32, generator=draw)).Q[:, :6].contiguous()}
    path = folder / f"{kind}-{architecture}.safetensors"
    Artefact(kind, tensors, {"model": f"tiny {architecture}", "config": config_hash(model.config)}).save(path)
    return path, tensors


def unit(vector):
    return vector / vector.norm(dim=-1, keepdim=True)


def turned(y, towards):
    return y.norm(dim=-1, keepdim=True) * unit(unit(y) + towards)


@contextmanager
def tower_turned(model, directions, strength):
    """Feed-forward outputs of the vision tower turned, by hooks of the test's own."""
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    blocks = [part for part in tower.modules() if type(part).__name__.endswith(("MLP", "Mlp"))]
    blocks = blocks[: len(directions)]  # behind them comes the merger of packed towers
    handles = [
        block.register_forward_hook(lambda _, args, y, d=d: turned(y, 0.1 * strength * unit(d)))
        for block, d in zip(blocks, directions, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def vti_gold(tensors, text, image):
    def gold(model, inputs, prefix):
        twin = Twin(model, mlp=lambda layer, _, y: turned(y, 0.1 * text * unit(tensors["decoder"][layer])))
        with tower_turned(model, tensors["vision"], image):
            edited = (twin if text else Twin(model)).next(inputs, prefix)
        return edited, Twin(model).next(inputs, prefix)

    return gold


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("text", "image"), [(4.0, 0.0), (0.0, 9.0), (3.0, 5.0)])
def test_vti(tmp_path, architecture, text, image):
    path, tensors = made(tmp_path, "vti", architecture, tiny(architecture)[0])
    check([VTI(path, alpha_text=text, alpha_image=image)], vti_gold(tensors, text, image), architecture)


def test_vti_takes_the_mean_where_a_tower_sees_another_number_of_tokens(tmp_path):
    path, tensors = made(tmp_path, "vti", "llava", tiny("llava")[0], tokens=7)
    tensors["vision"] = tensors["vision"].mean(1, keepdim=True)
    check([VTI(path, alpha_text=0.0, alpha_image=9.0)], vti_gold(tensors, 0.0, 9.0), "llava")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nullu(tmp_path, architecture):
    path, tensors = made(tmp_path, "nullu", architecture, tiny(architecture)[0])

    def gold(model, inputs, prefix):
        """The published edit: the last weight of the block times `I - P`, in a copy of the model."""
        edited = copy.deepcopy(model)
        for layer in (1, 2):
            found = tensors["directions"][layer, :4]
            weight = edited.get_decoder().layers[layer].mlp.down_proj.weight
            with torch.no_grad():
                weight.copy_((torch.eye(32) - found.T @ found) @ weight)
        return Twin(edited).next(inputs, prefix), Twin(model).next(inputs, prefix)

    check([Nullu(path, layers=(1 / 3, 1.0))], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vsv(architecture):
    strength = 0.8

    def gold(model, inputs, prefix):
        positive, negative = Twin(model), Twin(model)
        positive.next(inputs)
        negative.next(without_image(inputs))
        directions = {layer: positive.hidden[layer][0, -1] - negative.hidden[layer][0, -1] for layer in (1, 2, 3)}

        def turn(layer, _, x):
            d = directions[layer + 1]
            away = (-(x * d).sum(-1, keepdim=True) / (x.norm(dim=-1, keepdim=True) * d.norm())).clamp(min=0)
            return turned(x, strength * (1 + away) * unit(d))

        return Twin(model, mlp=turn).next(inputs, prefix), positive.next(inputs, prefix)

    check([VSV(strength=strength)], gold, architecture)


def without_image(inputs):
    """Prompt without placeholders and what fences them."""
    ids = [token for token in inputs["input_ids"][0].tolist() if token not in (98, 99, 100, 102, 103)]
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class FittedContract(StrategyContract):
    """Gives every model the artefact that was made for it."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def guard(self, model, *strategies, **options):
        kind, architecture = strategies[0].name, model.config.model_type
        path, _ = made(self.folder, kind, architecture, model)
        fitted = [dataclasses.replace(one, artefact=path) for one in strategies]
        return Guard(model, Words(), fitted, **options)


class TestVTI(FittedContract):
    strategy = VTI("made when needed", alpha_text=4.0, alpha_image=4.0)


class TestNullu(FittedContract):
    strategy = Nullu("made when needed")


class TestVSV(StrategyContract):
    strategy = VSV(strength=0.8)


@pytest.mark.parametrize("architecture", [name for name in ("mllama", "qwen3_5") if name in KNOWN])
def test_vsv_where_the_image_misses_layers(architecture):
    """Cross-attention layers that a prompt without image skips, and early layers that the image has not reached."""
    model, _ = tiny(architecture)
    singles, batch = ragged(architecture, model)
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    guard = Guard(model, Words(), [VSV(strength=0.8)])
    plain, together = (call(**batch, **settings).logits[0] for call in (model.generate, guard.generate))
    assert float((together - plain).abs().max()) > 0.1
    for row, one in enumerate(singles):
        assert torch.allclose(guard.generate(**one, **settings).logits[0][0], together[row], atol=1e-4)


def test_vsv_needs_an_image():
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="'vsv' needs an image: pass one"):
        Guard(model, Words(), [VSV()]).generate(**without_image(inputs), max_new_tokens=2)


def test_vti_steers_a_request_without_image(tmp_path):
    model, inputs = tiny("llava")
    path, _ = made(tmp_path, "vti", "llava", model)
    guard = Guard(model, Words(), [VTI(path, alpha_text=4.0)])
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    text = without_image(inputs)
    plain, guarded = (call(**text, **settings).logits[0] for call in (model.generate, guard.generate))
    assert float((guarded - plain).abs().max()) > 0.1


def test_the_report_counts_the_prefixes_of_vsv():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [VSV()])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert guard.report.forwards.prefill == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("turn", [1, -1])
def test_attention_and_hidden_edits_stack(tmp_path, architecture, turn):
    """PAI's lifted scores and VTI's turned feed-forwards in one forward; the order of the stack changes nothing."""
    path, tensors = made(tmp_path, "vti", architecture, tiny(architecture)[0])

    def gold(model, inputs, prefix):
        def lifted(layer, scores):
            rows = torch.arange(scores.shape[-2]) >= twin.prompt - 1
            return torch.where(rows[:, None] & twin.image, scores + 1.5 * scores.abs(), scores)

        twin = Twin(
            model, scores=lifted, mlp=lambda layer, _, y: turned(y, 0.1 * 6.0 * unit(tensors["decoder"][layer]))
        )
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    stack = [PAI(alpha=1.5, gamma=1.0, layers=(0, 1.0)), VTI(artefact=path, alpha_text=6.0, alpha_image=0.0)]
    check(stack[::turn], gold, architecture)
