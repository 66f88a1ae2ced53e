"""Every parameter of every bundled strategy with odd values, and one token where the stack builds."""

import dataclasses
import functools
import random
from pathlib import Path

import numpy as np
import torch
from fuzzing import Attempt, Surface

from lvlm_guard import Guard
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testing import TinyProcessor, tiny

VALUES = (
    0, 1, -1, 2, 3, 100, 10**9, -(10**9), 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 99.0, 1e6, 1e9, 1e38, 1e308, -1e308, 5e-324,
    float("inf"), float("-inf"), float("nan"), True, False, None, "", "a", "all", "none", "end", "1", "0.5", "nan", "{}", "{:>9000000000}",
    "{0.__class__}", "{} {}", "{", "{{}}", "os:system", "json:loads", "no.such:fn", "\0", "\ud800", "x" * 100_000, "é" * 50,
    b"x", [], [0], [1], [0, 1], [0.5, 1.0], [1.0, 0.5], [5, 5], [10**9, 10**9], [[0, 0]], [[99, 99]], [[0]], [0] * 20_000, ["Yes"],
    ["", ""], ["flip"], ["flip", "nothing"], (), (0.0, 1.0), (0, 1.0), (True, 2), {}, {"a": 1}, set(), Path(), Path("none"),
    Path(__file__), "/dev/null", "/", object(), print, torch.tensor(1.0), torch.ones(3), np.float64(0.5), np.float32(0.5), np.int64(1),
    1j, range(3), "low", "high", "noise", "crop", "unk", "both", "released",
)  # fmt: skip


@functools.cache
def pairs() -> list[tuple[str, str]]:
    bundled = [offer for offer in catalogue() if offer.distribution == "lvlm-guard"]
    return [(offer.name, field.name) for offer in bundled for field in dataclasses.fields(offer.strategy)]


def generate(name: str, parameters: dict[str, object], as_object: bool) -> None:
    value = catalogue().find(name)(**parameters) if as_object else {"name": name, "params": parameters}
    model, inputs = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [value])
    guard.generate(**inputs, max_new_tokens=1, do_sample=False)


def draw(chance: random.Random, folder: Path) -> Attempt:
    name, parameter = chance.choice(pairs())
    parameters = {parameter: chance.choice(VALUES)}
    for field in dataclasses.fields(catalogue().find(name)):
        if field.default is dataclasses.MISSING and field.name not in parameters:
            parameters[field.name] = __file__
    as_object = chance.random() < 0.3
    return Attempt(f"{name} {parameter}={parameters[parameter]!r:.80}", lambda: generate(name, parameters, as_object))


SURFACE = Surface("parameters", draw, attempts=1500, slice=60)
