"""Stacks as Python values: names, lists, mappings, parameters, and what is none of these."""

import random
from pathlib import Path

from fuzzing import Attempt, Surface

from lvlm_guard import Stack

WORDS = ("vcd", "pai", "vdc", "", "a\x00b", "x" * 5000, "stack", "name", "params", "../x.toml", "Vcd", "é" * 300)
NUMBERS = (0, -1, 10**400, 1e308, float("inf"), float("nan"), True, None, b"x", {1}, 1j, object(), Path(), range(3))


def draw_value(chance: random.Random, depth: int = 0) -> object:
    kind = chance.randrange(5 if depth < 4 else 2)
    if kind == 0:
        return chance.choice(WORDS)
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind == 2:
        return [draw_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 3:
        return {chance.choice(WORDS): draw_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return {"name": chance.choice(WORDS), "params": draw_value(chance, depth + 1)}


def draw(chance: random.Random, folder: Path) -> Attempt:
    value = draw_value(chance)
    return Attempt(f"Stack.of({value!r})"[:300], lambda: Stack.of(value))


SURFACE = Surface("stack values", draw, attempts=1500, slice=60)
