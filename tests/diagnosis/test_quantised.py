"""Did a smaller dtype break it? A model quantised by real runtimes is sound, until a fault is planted in it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from lvlm_guard.diagnosis import diagnose_answer, diagnose_model
from lvlm_guard.diagnosis.model.components import Component, name_together
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testbed.world.scenes import scene
from lvlm_guard.testing.plants import draw_plant, planted

pytestmark = pytest.mark.filterwarnings("ignore")


def to_dynamic_int8(model):
    """Weights and activations of 8 bits, the latter scaled by what comes."""
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)


def to_torchao_int8(model):
    """Weights of 8 bits by torchao."""
    quantization = pytest.importorskip("torchao.quantization")
    quantised = copy.deepcopy(model)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    return quantised


RUNTIMES = [to_dynamic_int8, to_torchao_int8]


@pytest.fixture(scope="module", params=RUNTIMES, ids=lambda runtime: runtime.__name__)
def quantised(request, sound):
    return request.param(sound[0])


def diagnose(model, processor, items, profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diagnose_model(model, processor, items, profile=profile)


def test_a_quantised_model_is_sound_and_what_cannot_be_seen_of_it_is_said(quantised, sound, known, profile):
    assert (
        sum(type(part) is torch.nn.Linear and type(part.weight.data) is torch.Tensor for part in quantised.modules())
        == 0
    ), "no power"
    diagnosis = diagnose(quantised, sound[1], known[:48], profile)
    assert diagnosis.culprit.component == "none", diagnosis.evidence["scores"]
    scores = diagnosis.evidence["scores"]
    seen = {name for name in scores if name.split(".")[0] in ("tower", "projector", "mlp", "residual", "output")}
    assert seen, "no power"
    if not any(name.startswith("head") for name in scores):
        assert any("head of layers 0, 1, 2, 3, 4, 5, 6, 7 cannot be measured" in reason for reason in diagnosis.partial)


def test_a_broken_projector_of_a_quantised_model_is_named(quantised, sound, known, profile):
    with planted(draw_plant("projector_noise", 0, sound[0], CATEGORIES), quantised, sound[1]):
        diagnosis = diagnose(quantised, sound[1], known[:48], profile)
    assert (diagnosis.culprit.stage, diagnosis.culprit.component) == ("projector", "projector")


def test_an_answer_of_a_quantised_model_is_diagnosed_with_its_lens(quantised, sound):
    picture = scene("counterfactual", 3).picture
    diagnosis = diagnose_answer(
        quantised, picture, "describe this image .", processor=sound[1], answer="there is a red mug .", cells=0
    )
    assert not any("logit lens" in reason for reason in diagnosis.partial)
    assert diagnosis.maps.lens


def test_components_are_named_together():
    components = [Component("head", 1, 0), Component("head", 0, 1), Component("mlp", 3), Component("projector")]
    assert name_together(components) == ["head of layers 0, 1", "feed-forward of layer 3", "projector"]
    assert name_together([Component("head", 1, 0), Component("head", 1, 1)]) == ["head of layer 1"]
