"""The catalogue of suites: what installed distributions offer by entry point, each imported when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from typing_extensions import get_protocol_members

from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import GuardError, InputError, PluginError, describe_error, nearest
from lvlm_guard.host.discovery import Broken, distribution_of, load_each

GROUP = "lvlm_guard.suites"


@dataclass(frozen=True)
class SuiteOffer:
    """A suite class, and the distribution that offers it."""

    suite: Any
    distribution: str

    @property
    def name(self) -> str:
        """The name of the suite on the command line."""
        return str(self.suite.name)


class SuiteCatalogue:
    """Suites by name.

    Args:
        points: Entry points of the group `lvlm_guard.suites`: name = "module:Class", the name being the class's own.
    """

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self._points = sorted(points, key=lambda point: point.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all suites in alphabetical order, whether they can be loaded or not."""
        return tuple(dict.fromkeys(point.name for point in self._points))

    def find(self, name: str) -> SuiteOffer:
        """Import the suite called `name`.

        Raises:
            InputError: No installed distribution offers it; names the nearest.
            PluginError: Two distributions offer it, it cannot be imported, or it lacks what a suite must have.
        """
        points = [point for point in self._points if point.name == name]
        if not points:
            raise InputError(f"There is no suite {name!r}.{nearest(name, self.names)}")
        if len({point.value for point in points}) > 1:
            places = " and ".join(f"{distribution_of(point)} ({point.value})" for point in points)
            raise PluginError(f"The suite {name!r} is offered twice, by {places}. Uninstall or rename one.")
        return _load(points[0])

    def load_all(self) -> tuple[list[SuiteOffer], list[Broken]]:
        """Import every suite; one that fails is warned about, skipped, and returned with its reason."""
        offers: dict[str, SuiteOffer] = {}

        def load(point: EntryPoint) -> None:
            offers[point.name] = self.find(point.name)

        broken = load_each(self._points, load, "suite")
        return list(offers.values()), broken


@functools.cache
def catalogue() -> SuiteCatalogue:
    """Read the entry points of the installed distributions, once per process."""
    return SuiteCatalogue(entry_points(group=GROUP))


def find_suite(name: str) -> Any:
    """Return the class of a suite, to be made with its arguments: `find_suite("pope")(prompt_suffix=" One word.")`.

    Raises:
        InputError: There is no suite of that name; names the nearest.
        PluginError: As for `Catalogue.find`.
    """
    return catalogue().find(name).suite


def list_suites() -> tuple[str, ...]:
    """Return the names of all suites in alphabetical order."""
    return catalogue().names


def _load(point: EntryPoint) -> SuiteOffer:
    distribution = distribution_of(point)
    try:
        suite = point.load()
        _check(point.name, suite)
    except GuardError:
        raise
    except Exception as error:
        # Somebody else's module: whatever it stumbles over on import ends up here.
        raise PluginError(
            f"The suite {point.name!r} of {distribution} cannot be loaded: {describe_error(error)}"
        ) from error
    return SuiteOffer(suite, distribution)


def _check(name: str, suite: Any) -> None:
    """Check that an entry point leads to a frozen dataclass with every member of `Suite`, under its own name."""
    parameters = getattr(suite, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise PluginError(f"The suite {name!r} must be a frozen dataclass; decorate it with @dataclass(frozen=True).")
    missing = sorted(member for member in get_protocol_members(Suite) if not hasattr(suite, member))
    if missing:
        raise PluginError(f"The suite {name!r} lacks {', '.join(missing)}; see lvlm_guard.bench.suite.Suite.")
    if suite.name != name:
        raise PluginError(f"The entry point {name!r} leads to a suite named {suite.name!r}; give both the same name.")
