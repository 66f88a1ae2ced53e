"""What is compared: plain generate, the user's stacks, and the controls that a gain must beat before it counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.host.stack import Stack

GREEDY = "greedy"
SAMPLING = "sampling"
TEMPERATURE = "temperature"
SAMPLED_CONTROLS = ("mask_only", TEMPERATURE)
"""Controls that only sampling can show: greedily they say, token by token, what plain generate says."""

GREEDY_CONTROLS = ("yes_bias", "olm", "pba")
CONTROLS = (GREEDY, SAMPLING, *SAMPLED_CONTROLS, *GREEDY_CONTROLS)
"""Added to every run unless switched off by name."""

STRENGTHS = ("alpha", "kappa")
"""What contrastive strategies call the strength of their contrast."""

UNMATCHED = (1.0, 0.1)
"""Alpha and beta of the temperature control where no stack contrasts: those of VCD, arXiv 2311.16922."""

Role = Literal["control", "stack"]
FILES = (".toml", ".yaml", ".yml")
_NAME = re.compile(r"[\w.+=@,-]+")


@dataclass(frozen=True)
class System:
    """One way to answer.

    Args:
        name: Unique in a run, and fit for a file name.
        stack: The strategies; none is plain generate.
        role: Whether somebody asked for it or it is there for comparison.
        sampled: Whether tokens are drawn (temperature 1, whole vocabulary) instead of taken greedily.
        matched: Names of the stacks whose strength a control was given.
    """

    name: str
    stack: Stack
    role: Role = "stack"
    sampled: bool = False
    matched: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the stack with every parameter."""
        return {
            "stack": self.stack.to_dict()["stack"],
            "role": self.role,
            "decoding": SAMPLING if self.sampled else GREEDY,
            "matched": list(self.matched),
        }


def named_stacks(given: Iterable[str]) -> dict[str, Stack]:
    """Stacks by name from what the command line takes: a strategy's name, or a stack file, which names its stack.

    Raises:
        InputError: Two of the same name, or a name that no file could have.
        StackError: A stack that cannot be built.
    """
    stacks: dict[str, Stack] = {}
    for one in given:
        name = Path(one).stem if Path(one).suffix in FILES else one
        if name in stacks:
            raise InputError(f"Two stacks are called {name!r}. Rename one of the files, or leave one out.")
        stacks[name] = Stack.of(one)
    return stacks


def line_up(stacks: Mapping[str, Stack], without: Collection[str] = (), *, sampled: bool = False) -> tuple[System, ...]:
    """Controls first, then the stacks in their order.

    Args:
        stacks: The user's, by name.
        without: Controls to switch off.
        sampled: Whether the user's stacks sample.

    Raises:
        InputError: An unknown control, or a stack that is called like a control which is not switched off.
    """
    for name in without:
        if name not in CONTROLS:
            raise InputError(f"--without: no control is called {name!r}.{nearest(name, CONTROLS)}")
    asked = [System(name, stack, sampled=sampled) for name, stack in stacks.items()]
    systems = (*(one for name in CONTROLS if name not in without for one in _control(name, asked)), *asked)
    _check_names(systems)
    return systems


def _check_names(systems: Sequence[System]) -> None:
    seen: dict[str, System] = {}
    for one in systems:
        if not _NAME.fullmatch(one.name):
            raise InputError(
                f"The stack name {one.name!r} cannot be a file name. Use letters, digits and . + = @ , - _."
            )
        taken = seen.setdefault(one.name, one)
        if taken is not one:
            raise InputError(
                f"{one.name!r} is a control that every run has. Leave the stack out, or switch the control off: "
                f"--without {taken.name.split('@')[0]}."
            )


def _control(name: str, stacks: Sequence[System]) -> Sequence[System]:
    if name in (GREEDY, SAMPLING):
        return (System(name, Stack(), "control", sampled=name == SAMPLING),)
    if name == TEMPERATURE:
        return _temperatures(stacks)
    return (System(name, Stack.of(name), "control", sampled=name in SAMPLED_CONTROLS),)


def _temperatures(stacks: Sequence[System]) -> Sequence[System]:
    """One temperature control for each strength that occurs; several are told apart by the first stack they match."""
    matches: dict[tuple[float, float], list[str]] = {}
    for one in stacks:
        if (strength := contrast(one.stack)) is not None:
            matches.setdefault(strength, []).append(one.name)
    several = len(matches) > 1
    return [
        System(
            f"{TEMPERATURE}@{names[0]}" if several else TEMPERATURE,
            Stack.of({"name": TEMPERATURE, "params": {"alpha": alpha, "beta": beta}}),
            "control",
            sampled=True,
            matched=tuple(names),
        )
        for (alpha, beta), names in (matches or {UNMATCHED: []}).items()
    ]


def contrast(stack: Stack) -> tuple[float, float] | None:
    """Strength of a stack's contrasts added up, and their strictest plausibility; None where nothing is contrasted."""
    found = [
        (float(parameters[name]), float(parameters.get("beta", 0.0)))
        for strategy in stack
        if getattr(strategy, "family", "") == "contrastive"
        for parameters in (dataclasses.asdict(strategy),)  # type: ignore[call-overload]
        for name in STRENGTHS
        if name in parameters
    ]
    if not found:
        return None
    return sum(alpha for alpha, _ in found), max(beta for _, beta in found)
