"""What is compared: plain generate, the user's stacks, and the controls that a gain must beat before it counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lvlm_guard.deprecation import moved_names
from lvlm_guard.errors import InputError, nearest
from lvlm_guard.host.plugins import contrast_strength
from lvlm_guard.host.stack import Stack, name_stack

GREEDY = "greedy"
SAMPLING = "sampling"
TEMPERATURE = "temperature"
SAMPLED_CONTROLS = ("mask_only", TEMPERATURE)
"""Controls that only sampling can show: greedily they say, token by token, what plain generate says."""

SWAP = "swap"
BIAS = "bias"
GREEDY_CONTROLS = ("yes_bias", "olm", "pba", "contrarian")
CONTROLS = (GREEDY, SAMPLING, *SAMPLED_CONTROLS, *GREEDY_CONTROLS, SWAP, BIAS)
"""Added to every run unless switched off by name. `bias` is computed from greedy's margins; nothing is generated for it."""

SWAPPED = "swapped"
"""The boolean field of a strategy that takes its evidence from another picture of the batch or call: its own control."""

UNMATCHED = (1.0, 0.1)
"""Alpha and beta of the temperature control where no stack contrasts: those of VCD, arXiv 2311.16922."""

Role = Literal["control", "stack"]
_NAME = re.compile(r"[\w.+=@,-]+")


@dataclass(frozen=True)
class System:
    """One way to answer.

    Args:
        name: Unique in a run, and fit for a file name.
        stack: The strategies; none is plain generate.
        role: Whether it is the user's stack or a control.
        sampled: Whether tokens are drawn (temperature 1, whole vocabulary) instead of taken greedily.
        matched: Names of the stacks whose strength, or whose evidence, a control was given.
        swapped_picture: Whether each item is put with the picture of another scene.
    """

    name: str
    stack: Stack
    role: Role = "stack"
    sampled: bool = False
    matched: tuple[str, ...] = ()
    swapped_picture: bool = False

    @property
    def is_evidence_swapped(self) -> bool:
        """Whether a strategy of the stack takes its evidence from another picture, so that it needs one in each call."""
        return any(getattr(strategy, SWAPPED, None) is True for strategy in self.stack)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the stack with every parameter."""
        return {
            "stack": self.stack.to_dict()["stack"],
            "role": self.role,
            "decoding": SAMPLING if self.sampled else GREEDY,
            "matched": list(self.matched),
            **({"swapped_picture": True} if self.swapped_picture else {}),
        }


def read_stacks(values: Iterable[str], allow: Collection[str] = ()) -> dict[str, Stack]:
    """Read stacks by name: names of strategies joined by `+`, or a stack file, which names its stack.

    Raises:
        InputError: Two of the same name, or a name that no file could have.
        StackError: A stack that cannot be built.
    """
    stacks: dict[str, Stack] = {}
    for value in values:
        name = name_stack(value)
        if name in stacks:
            raise InputError(f"Two stacks are called {name!r}. Rename one of the files, or leave one out.")
        stacks[name] = Stack.of(value, allow=allow)
    return stacks


def build_systems(
    stacks: Mapping[str, Stack], without: Collection[str] = (), *, sampled: bool = False
) -> tuple[System, ...]:
    """Build the controls, then the stacks in their order.

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
    compared = [System(name, stack, sampled=sampled) for name, stack in stacks.items()]
    systems = (
        *(control for name in CONTROLS if name not in without for control in _control(name, compared)),
        *compared,
    )
    _check_names(systems)
    return systems


def _check_names(systems: Sequence[System]) -> None:
    by_name: dict[str, System] = {}
    for system in systems:
        if not _NAME.fullmatch(system.name):
            raise InputError(
                f"The stack name {system.name!r} cannot be a file name. Use letters, digits and . + = @ , - _."
            )
        holder = by_name.setdefault(system.name, system)
        if holder is not system:
            raise InputError(
                f"{system.name!r} is a control that every run has. Leave the stack out, or switch the control off: "
                f"--without {holder.name.split('@')[0]}."
            )


def _control(name: str, stacks: Sequence[System]) -> Sequence[System]:
    if name in (GREEDY, SAMPLING):
        return (System(name, Stack(), "control", sampled=name == SAMPLING),)
    if name == TEMPERATURE:
        return _temperatures(stacks)
    if name == BIAS:
        return ()
    if name == SWAP:
        return (System(SWAP, Stack(), "control", swapped_picture=True), *_swapped_evidence(stacks))
    return (System(name, Stack.of(name), "control", sampled=name in SAMPLED_CONTROLS),)


def _temperatures(stacks: Sequence[System]) -> Sequence[System]:
    """Build a temperature control for each strength that occurs; several are named after the first stack they match."""
    matches: dict[tuple[float, float], list[str]] = {}
    for system in stacks:
        if (strength := contrast(system.stack)) is not None:
            matches.setdefault(strength, []).append(system.name)
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


def _swapped_evidence(stacks: Sequence[System]) -> Iterable[System]:
    """Build a control for each stack with evidence that can be taken from another picture: the stack with that evidence."""
    for system in stacks:
        if any(getattr(strategy, SWAPPED, None) is False for strategy in system.stack):
            stack = Stack.of([_swap_evidence(strategy) for strategy in system.stack])
            yield System(f"{SWAP}@{system.name}", stack, "control", sampled=system.sampled, matched=(system.name,))


def _swap_evidence(strategy: Any) -> Any:
    has_field = getattr(strategy, SWAPPED, None) is False
    return dataclasses.replace(strategy, **{SWAPPED: True}) if has_field else strategy


def contrast(stack: Stack) -> tuple[float, float] | None:
    """Return the sum of a stack's contrast strengths, and the strictest plausibility.

    None where nothing is contrasted.
    """
    contrasts = [
        (float(getattr(strategy, parameter)), float(getattr(strategy, "beta", 0.0)))
        for strategy in stack
        if (parameter := contrast_strength(strategy)) is not None
    ]
    if not contrasts:
        return None
    return sum(alpha for alpha, _ in contrasts), max(beta for _, beta in contrasts)


__getattr__ = moved_names(
    __name__,
    {
        "line_up": "lvlm_guard.bench.running.systems:build_systems",
        "named_stacks": "lvlm_guard.bench.running.systems:read_stacks",
    },
)
