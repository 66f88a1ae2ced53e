"""Calibration items, which a search may look at, and held-out ones, on which it is judged: about different pictures."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lvlm_guard.bench.items import Item, Level
from lvlm_guard.bench.running.choosing import build_suite, choose_suites
from lvlm_guard.bench.running.gathering import gather
from lvlm_guard.bench.running.manifest import Gathered, RunPlan, SuiteChoice
from lvlm_guard.bench.scoring.fitted_bias import find_fold
from lvlm_guard.bench.scoring.intervals import FEWEST
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError

CALIBRATION = "calibration"
HALF = "half"
"""Sets some pictures of the suite itself aside for calibration."""

_SET_ASIDE = (0, 1)
"""Folds of pictures, of five, that `half` takes for calibration."""


@dataclass(frozen=True)
class Split:
    """Items of one suite.

    Args:
        name: What the suite is called in runs.
        choice: The suite and how its answers are read.
        content: Its items and what is known of their files.
    """

    name: str
    choice: SuiteChoice
    content: Gathered

    @property
    def items(self) -> Sequence[Item]:
        """The items in their order."""
        return self.content.items[self.name]

    @property
    def clusters(self) -> list[str]:
        """Pictures, or groups of them that go together, in the order of their first items."""
        return list(dict.fromkeys(item.cluster for item in self.items))

    def select(self, clusters: Sequence[str]) -> Split:
        """Return the items of some clusters."""
        chosen = set(clusters)
        return self.keep([item for item in self.items if item.cluster in chosen])

    def keep(self, items: Sequence[Item]) -> Split:
        """Return a part of the items, with the digests of their pictures."""
        images = {item.image for item in items}
        pictures = {name: digest for name, digest in self.content.pictures.get(self.name, {}).items() if name in images}
        content = dataclasses.replace(self.content, items={self.name: items}, pictures={self.name: pictures})
        return dataclasses.replace(self, content=content)

    def describe(self) -> dict[str, Any]:
        """Return plain values: the suite with its arguments, and how much of it there is."""
        arguments = {
            field.name: getattr(self.choice.suite, field.name)
            for field in dataclasses.fields(self.choice.suite)  # type: ignore[arg-type]
        }
        return {
            "suite": self.choice.suite.name,
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
            "parser": self.choice.parser,
            "items": len(self.items),
            "pictures": len(self.clusters),
        }


@dataclass(frozen=True)
class Splits:
    """Items to search on, and items to judge on."""

    calibration: Split
    held_out: Split

    def keep_levels(self, levels: Sequence[Level]) -> Splits:
        """Return the items of some levels.

        Raises:
            InputError: Too few pictures are left on either side.
        """
        parts = [
            part.keep([item for item in part.items if item.level in levels])
            for part in (self.calibration, self.held_out)
        ]
        for part, use in zip(parts, ("calibration", "held-out"), strict=True):
            if len(part.clusters) < FEWEST:
                raise InputError(
                    f"{part.choice.suite.name} has {len(part.clusters)} {use} pictures at {', '.join(levels)}; nothing can be told "
                    f"from chance below {FEWEST}. Take more of them."
                )
        return Splits(*parts)


def split_suite(
    spec: str,
    calibration: str | None = None,
    *,
    parser: str | None = None,
    data: Path | None = None,
    limit: int | None = None,
) -> Splits:
    """Read a suite in two parts.

    Args:
        spec: The suite that stacks are judged on, with its arguments.
        calibration: The suite that is searched on, with its arguments; `half` sets pictures of the suite itself aside; None
            takes the suite's own calibration split, with the other arguments of `spec`.
        parser: How answers are read.
        data: Folder of the suites' files.
        limit: At most so many items of either part, in whole pictures.

    Raises:
        InputError: There is no such suite, it has no calibration split, or the parts share pictures.
    """
    (name, choice), *_ = choose_suites([spec], parser).items()
    _refuse_calibration(choice.suite)
    searched = None if calibration == HALF else _choose_calibration(choice, calibration, parser)
    judged = _gather(name, choice, data, limit)
    if searched is None:
        return _halve(judged)
    splits = Splits(_gather(searched.suite.name, searched, data, limit), judged)
    _refuse_overlap(splits)
    return splits


def _choose_calibration(choice: SuiteChoice, spec: str | None, parser: str | None) -> SuiteChoice:
    if spec is None:
        return _find_calibration(choice)
    ((_, searched),) = choose_suites([spec], parser).items()
    return searched


def _halve(split: Split) -> Splits:
    """Set some pictures aside for calibration."""
    aside = {cluster: find_fold(cluster) in _SET_ASIDE for cluster in split.clusters}
    return Splits(*(split.select([name for name in aside if aside[name] is side]) for side in (True, False)))


def _gather(name: str, choice: SuiteChoice, data: Path | None, limit: int | None) -> Split:
    return Split(name, choice, gather(RunPlan({name: choice}, (), data=data, limit=limit)))


def _refuse_calibration(suite: Suite) -> None:
    if getattr(suite, "split", None) == CALIBRATION:
        raise InputError(
            f"{suite.name}: calibration items are what a search looks at, so nothing can be judged on them. Name another split."
        )


def _find_calibration(choice: SuiteChoice) -> SuiteChoice:
    """Return the calibration split of a suite, its other arguments the same."""
    kind = type(choice.suite)
    if CALIBRATION not in get_args(typing.get_type_hints(kind).get("split")):
        raise InputError(
            f"{choice.suite.name} has no calibration split. Name other pictures to search on by --calibration SUITE, or set some of "
            f"its own aside: --calibration {HALF}."
        )
    arguments: Mapping[str, Any] = {**choice.arguments, "split": CALIBRATION}
    return SuiteChoice(build_suite(choice.suite.name, arguments), choice.parser, arguments)


def _refuse_overlap(splits: Splits) -> None:
    """Refuse parts that share pictures, by name within one kind of suite or by the content of their files."""
    if splits.calibration.choice.suite.name == splits.held_out.choice.suite.name:
        images = [{item.image for item in part.items} - {None} for part in (splits.calibration, splits.held_out)]
        _refuse_shared(images[0] & images[1])
    digests = [
        {digest: name for name, digest in part.content.pictures.get(part.name, {}).items()}
        for part in (splits.calibration, splits.held_out)
    ]
    _refuse_shared({digests[0][digest] for digest in digests[0].keys() & digests[1].keys()})


def _refuse_shared(pictures: typing.Collection[str | None]) -> None:
    if pictures:
        example = min(str(picture) for picture in pictures)
        raise InputError(
            f"{len(pictures)} pictures, such as {example}, are in both parts, so a stack would be judged on what it was chosen on. "
            "Name other pictures by --calibration."
        )
