"""A strategy of somebody else's, one of whose hooks does something odd; the model is as it was afterwards."""

import dataclasses
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from fuzzing import Attempt, Surface

from lvlm_guard import (
    AttentionCapture,
    AttentionEdit,
    Bias,
    Branch,
    Contrast,
    Guard,
    HiddenEdit,
    InputEdit,
    Insert,
    Mix,
    Plausible,
    Readout,
    Restrict,
    Revision,
    Search,
    hookimpl,
)
from lvlm_guard.strategy.hookspecs import Strategy, hook_names
from lvlm_guard.testing import TinyProcessor, tiny

HOOKS = hook_names(Strategy)
ODD = (None, 0, 1, -1, 10**9, 1.5, float("nan"), float("inf"), True, "", "main", "nowhere", "a\0", b"x", (), [], [1], {}, {"a": 1}, set(), object(),
       torch.ones(()), torch.ones(3), torch.ones(5, 7), torch.full((128,), float("nan")), torch.ones(128, device="meta"), torch.ones(2, 2).long(),
       torch.ones(128, dtype=torch.complex64), torch.zeros(128), Branch, Branch("x", image="removed"), lambda *_: None)  # fmt: skip
KINDS = (
    AttentionCapture,
    AttentionEdit,
    Bias,
    Branch,
    Contrast,
    HiddenEdit,
    InputEdit,
    Insert,
    Mix,
    Plausible,
    Readout,
    Restrict,
    Revision,
    Search,
)


class AuthorsError(Exception):
    """What an author's own code raises."""


@dataclass(frozen=True)
class Odd:
    name: ClassVar[str] = "odd"
    hook: str = "terms"
    act: Callable[[Any], Any] | None = None


def implement(hook: str) -> Any:
    return hookimpl(lambda self, gen: self.act(gen))


CLASSES = {
    hook: dataclass(frozen=True)(type("Odd", (Odd,), {hook: implement(hook), "__annotations__": {}})) for hook in HOOKS
}


def blacken(gen: Any) -> None:
    if gen.forward is not None:
        gen.logits().fill_(0)


def draw_act(chance: random.Random) -> tuple[str, Callable[[Any], Any]]:
    kind = chance.randrange(8)
    value, other = chance.choice(ODD), chance.choice(ODD)
    if kind == 0:
        return f"returns {value!r:.60}", lambda gen: value
    if kind == 1:
        return f"yields {value!r:.60}", lambda gen: iter([value])
    if kind == 2:
        return "yields for ever", lambda gen: itertools.repeat(value)
    if kind == 3:
        part = chance.choice(("prompt", "model", "forward", "rows", "state", "observations", "services", "own"))
        return f"sets gen.{part}", lambda gen: setattr(gen, part, value)
    if kind == 4:
        return "changes logits", blacken
    if kind == 5:

        def fail(gen: Any) -> Any:
            raise AuthorsError("mine")

        return "raises", fail
    what = chance.choice(KINDS)
    fields = [field for field in dataclasses.fields(what) if field.init]
    needed = {field.name: value for field in fields if field.default is dataclasses.MISSING}
    changed = {chance.choice(fields).name: other}
    twice = 1 + (kind == 7)
    return (
        f"yields {what.__name__}({needed!r:.60}, {changed!r:.60}) x {twice}",
        lambda gen: [what(**{**needed, **changed})] * twice,
    )


def generate(strategy: Odd) -> None:
    model, inputs = tiny("llava")
    before = {name: tensor.clone() for name, tensor in itertools.islice(model.state_dict().items(), 3)}
    try:
        Guard(model, TinyProcessor("llava"), [strategy]).generate(**inputs, max_new_tokens=2, do_sample=False)
    except AuthorsError as error:
        if not any("odd." in note for note in getattr(error, "__notes__", ["odd."])):
            raise AssertionError("no note says which hook raised it") from error
    finally:
        assert "forward" not in vars(model)
        assert "generate" not in vars(model)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def draw(chance: random.Random, folder: Path) -> Attempt:
    hook = chance.choice(HOOKS)
    description, act = draw_act(chance)
    return Attempt(f"{hook} {description}", lambda: generate(CLASSES[hook](hook, act)))


SURFACE = Surface("plugins", draw, attempts=800, slice=50)
