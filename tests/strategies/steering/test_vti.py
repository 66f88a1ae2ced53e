"""|y| norm(norm(y) + 0.1 alpha norm(d)) in decoder and vision tower; d is fitted."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from against_twin import OF_STRATEGIES, check
from fitted import FittedContract, make_artefact, turn_towards, unit, without_image
from lvlm_guard_steering import VTI
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words


@contextmanager
def turn_tower(model, directions, strength):
    """Feed-forward outputs of the vision tower turn, by hooks of the test's own."""
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    blocks = [part for part in tower.modules() if type(part).__name__.endswith(("MLP", "Mlp"))]
    blocks = blocks[: len(directions)]  # behind them comes the merger of packed towers
    handles = [
        block.register_forward_hook(lambda _, args, y, d=d: turn_towards(y, 0.1 * strength * unit(d)))
        for block, d in zip(blocks, directions, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def vti_gold(tensors, text, image):
    def gold(model, inputs, prefix):
        twin = Twin(model, mlp=lambda layer, _, y: turn_towards(y, 0.1 * text * unit(tensors["decoder"][layer])))
        with turn_tower(model, tensors["vision"], image):
            edited = (twin if text else Twin(model)).next(inputs, prefix)
        return edited, Twin(model).next(inputs, prefix)

    return gold


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("text", "image"), [(4.0, 0.0), (0.0, 9.0), (3.0, 5.0)])
def test_vti(tmp_path, architecture, text, image):
    path, tensors = make_artefact(tmp_path, "vti", architecture, tiny(architecture)[0])
    check([VTI(path, alpha_text=text, alpha_image=image)], vti_gold(tensors, text, image), architecture)


def test_vti_takes_the_mean_where_a_tower_sees_another_number_of_tokens(tmp_path):
    path, tensors = make_artefact(tmp_path, "vti", "llava", tiny("llava")[0], tokens=7)
    tensors["vision"] = tensors["vision"].mean(1, keepdim=True)
    check([VTI(path, alpha_text=0.0, alpha_image=9.0)], vti_gold(tensors, 0.0, 9.0), "llava")


class TestVTI(FittedContract):
    strategy = VTI("made when needed", alpha_text=4.0, alpha_image=4.0)


def test_vti_steers_a_request_without_image(tmp_path):
    model, inputs = tiny("llava")
    path, _ = make_artefact(tmp_path, "vti", "llava", model)
    guard = Guard(model, Words(), [VTI(path, alpha_text=4.0)])
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    text = without_image(inputs)
    plain, guarded = (call(**text, **settings).logits[0] for call in (model.generate, guard.generate))
    assert float((guarded - plain).abs().max()) > 0.1
