"""Types for parameters: what each takes and refuses, and how strategies describe and narrow them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
from pydantic import Field, TypeAdapter, ValidationError

from lvlm_guard import Branch, Guard, fields
from lvlm_guard.host.plugins import Offer, catalogue
from lvlm_guard.strategy.prompt import ModelInfo
from lvlm_guard.strategy.user_functions import AllowedName
from lvlm_guard.testing import tiny

NUMBERS = (math.nan, math.inf, -math.inf, -1.0, -1e-9, 0.0, 0.5, 1.0, 1.5, 1e9)
TAKEN = {
    "Strength": (0.0, 0.5, 1.0, 1.5),
    "ContrastStrength": (0.0, 0.5, 1.0, 1.5),
    "Factor": (0.0, 0.5, 1.0, 1.5),
    "Share": (0.0, 0.5, 1.0),
    "PositiveShare": (0.5, 1.0),
    "Probability": (0.0, 0.5, 1.0),
    "Plausibility": (0.0, 0.5, 1.0),
    "Timeout": (0.5, 1.0, 1.5),
    "Layer": (0.0, 0.5, 1.0),
    "EarlierLayer": (0.0, 0.5),
}
VALUES = {
    "Count": ((1, 7), (0, -1, 10**9, 1.5, "many")),
    "Seed": ((0, -3, 2**40), (2**63, 0.5, "seed", None)),
    "UserFunction": ((AllowedName("package.module:function"), len, None), ("os:system", "no path", 3, 0.5)),
    "Template": (("Is there a {}?",), ("Is there a mug?", "", "{} {}", "{0}", "{{}}")),
    "Text": (("", "any"), ("x" * 10_001,)),
    "ExistingFile": ((Path(__file__),), ("none", "", "x" * 5000)),
    "Layer": ((0, 31), (-1, "first")),
    "EarlierLayer": ((0, 31), (-1, 2.0)),
    "LayerRange": (((0, 3), (0.25, 1.0), (2, 1.0)), ((0.5,), (0.2, 1.5), (0.2, 2.0), (-1, 3), "middle", (1, 2, 3))),
    "LayerOutputs": (((1,), (0.5, 1.0), (3, 0.9)), ((), (0,), (0.0,), (1.5,), (-1,))),
}


def takes(name, value):
    try:
        taken = TypeAdapter(getattr(fields, name)).validate_python(value)
    except ValidationError:
        return False
    assert taken == value
    assert not isinstance(value, tuple) or [type(part) for part in taken] == [type(part) for part in value]
    return True


@pytest.mark.parametrize("name", TAKEN)
def test_the_bounds_of_numbers(name):
    assert tuple(number for number in NUMBERS if takes(name, number)) == TAKEN[name]


@pytest.mark.parametrize("name", VALUES)
def test_the_values_of_others(name):
    good, bad = VALUES[name]
    assert [value for value in good if not takes(name, value)] == []
    assert [value for value in bad if takes(name, value)] == []


def test_every_type_is_tested_and_described():
    assert set(fields.__all__) == set(TAKEN) | set(VALUES)
    assert sorted(fields.__all__) == fields.__all__
    plain = {"Layer", "EarlierLayer"}  # one of two bounds each; the parameter says what it is for
    described = [name for name in fields.__all__ if TypeAdapter(getattr(fields, name)).json_schema().get("description")]
    assert set(described) == set(fields.__all__) - plain


@dataclass(frozen=True)
class Mine:
    """A strategy with types of its own words."""

    weight: Annotated[fields.Strength, Field(description="weight of the penalty")] = 1.0
    narrow: Annotated[fields.Strength, Field(le=2)] = 1.0
    layers: fields.LayerRange = (0, 1.0)


def test_an_outer_annotation_describes_or_narrows():
    weight, narrow, layers = Offer(Mine, "tests").describe()["parameters"]
    assert (weight["description"], weight["min"]) == ("weight of the penalty", 0)
    assert (narrow["description"], narrow["min"], narrow["max"]) == ("strength of the effect", 0, 2)
    assert layers["default"] == [0, 1.0]
    with pytest.raises(ValidationError, match="finite"):
        TypeAdapter(Mine).validate_python({"weight": math.inf})


def test_every_parameter_of_a_bundled_strategy_is_described():
    bundled = [offer.describe() for offer in catalogue() if offer.distribution == "lvlm-guard"]
    parameters = [(one["name"], parameter) for one in bundled for parameter in one["parameters"]]
    assert len(parameters) > 80
    assert [(name, parameter["name"]) for name, parameter in parameters if not parameter.get("description")] == []


LAYER_PARAMETERS = {
    "deco": ("layers", [1, 2], [1 / 3, 2 / 3]),
    "dola": ("layers", [0, 2], [0.0, 2 / 3]),
    "memvr": ("layers", [1, 2], [1 / 3, 2 / 3]),
    "nullu": ("layers", [1, 3], [1 / 3, 1.0]),
    "pai": ("layers", [1, 3], [1 / 3, 1.0]),
    "sid": ("layer", 1, 1 / 3),
    "sla": ("layers", [1, 2], [1 / 3, 2 / 3]),
    "vaf": ("layers", [1, 2], [1 / 3, 2 / 3]),
}


def numbers(value):
    model = ModelInfo(depth=3)
    return [model.layer_number(layer) for layer in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("name", LAYER_PARAMETERS)
@pytest.mark.parametrize("through_json", [False, True])
def test_layer_parameters_take_numbers_and_fractions_alike(name, through_json):
    parameter, *both = LAYER_PARAMETERS[name]
    needed = {"artefact": __file__} if name == "nullu" else {}
    strategy = TypeAdapter(catalogue().find(name))
    read = strategy.validate_json if through_json else strategy.validate_python
    made = [
        read(json.dumps({parameter: value, **needed}) if through_json else {parameter: value, **needed})
        for value in both
    ]
    whole, fraction = (getattr(one, parameter) for one in made)
    assert numbers(whole) == numbers(fraction)
    assert {type(layer) for layer in (whole if isinstance(whole, tuple) else (whole,))} == {int}


@pytest.mark.parametrize("name", sorted(set(LAYER_PARAMETERS) - {"nullu"}))
def test_layer_numbers_do_what_fractions_do(name):
    parameter, *both = LAYER_PARAMETERS[name]
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    stacks = [[{"name": name, "params": {parameter: value}}] for value in both]
    whole, fraction = (Guard(model, None, stack).generate(**inputs, **settings).logits for stack in stacks)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole, fraction, strict=True))
    assert not torch.equal(whole[0], model.generate(**inputs, **settings).logits[0])


def test_every_layer_parameter_is_in_the_table():
    bundled = [offer.describe() for offer in catalogue() if offer.distribution == "lvlm-guard"]
    has_layers = {
        one["name"] for one in bundled for parameter in one["parameters"] if parameter["name"].startswith("layer")
    }
    assert has_layers == set(LAYER_PARAMETERS)


def test_branches_without_the_image():
    assert Branch.without_image() == Branch(("no image",), image="removed")
    assert Branch.without_image().key == Branch.without_image().key != Branch.without_image(3).key
    assert Branch.without_image(3).tokens[0].ids == (3,)
    assert Branch.without_image(0).drops_image
