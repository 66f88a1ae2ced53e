"""Load what installed distributions offer by entry point; report and skip what cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint

from lvlm_guard.errors import GuardWarning, describe_error
from lvlm_guard.user_warnings import warn_user


@dataclass(frozen=True)
class Broken:
    """An entry point that could not be loaded, and why."""

    entry_point: str
    distribution: str
    reason: str


def distribution_of(point: EntryPoint) -> str:
    """Return the name of the distribution that declares an entry point."""
    return point.dist.name if point.dist else "unknown distribution"


def load_each(points: Iterable[EntryPoint], load: Callable[[EntryPoint], None], kind: str) -> list[Broken]:
    """Load entry points in the order of their names; warn about each that fails and go on.

    Args:
        points: The entry points of one group.
        load: Loads one of them and keeps what it offers.
        kind: What the warning calls an entry point, for example "plugin".

    Returns:
        The entry points that failed, with the reason.
    """
    broken = []
    for point in sorted(points, key=lambda point: point.name):
        try:
            load(point)
        except Exception as error:  # noqa: BLE001, PERF203 - somebody else's package must not take everybody down
            failure = Broken(point.name, distribution_of(point), describe_error(error))
            broken.append(failure)
            warn_user(
                f"The {kind} {failure.entry_point!r} of {failure.distribution} was skipped: {failure.reason}",
                GuardWarning,
            )
    return broken


def describe_broken(broken: Iterable[Broken]) -> str:
    """Finish an error message: what could not be loaded, and why; nothing where everything was."""
    reasons = ", ".join(f"{plugin.distribution} ({plugin.reason})" for plugin in broken)
    return f" Not loaded: {reasons}." if reasons else ""
