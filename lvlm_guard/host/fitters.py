"""Discovery of fitters through the entry points that offer strategies."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from lvlm_guard.errors import InputError, PluginRejected, nearest
from lvlm_guard.host.discovery import Broken, describe_broken, distribution_of, load_each
from lvlm_guard.host.plugins import GROUP, Catalogue, catalogue, is_marked, load_plugin
from lvlm_guard.strategy.fitters import Fitter


@dataclass(frozen=True)
class FitterOffer:
    """A fitter, and the distribution that offers it."""

    fitter: Fitter
    distribution: str


@dataclass
class FitterCatalogue:
    """Every fitter that the installed distributions offer, by the name of its strategy."""

    offers: dict[str, FitterOffer] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def __iter__(self) -> Iterator[FitterOffer]:
        return iter(self.offers[name] for name in sorted(self.offers))

    def add(self, fitter: Fitter, distribution: str, strategies: Catalogue) -> None:
        """Add a fitter.

        Raises:
            PluginRejected: It is no `Fitter`, its function takes other arguments, its strategy is not the distribution's,
                or the strategy has a fitter.
        """
        check_fitter(fitter, distribution)
        offered = [offer.name for offer in strategies if offer.distribution == distribution]
        if fitter.strategy not in offered:
            raise PluginRejected(
                f"{distribution} offers a fitter for {fitter.strategy!r}, but no strategy of that name."
                f"{nearest(fitter.strategy, offered)}"
            )
        if fitter.strategy in self.offers and self.offers[fitter.strategy].fitter != fitter:
            raise PluginRejected(f"{distribution} offers two fitters for {fitter.strategy!r}; leave one out.")
        self.offers[fitter.strategy] = FitterOffer(fitter, distribution)

    def find(self, strategy: str) -> Fitter:
        """Return the fitter for the strategy of this name, or the one that has it as an alias.

        Raises:
            InputError: No installed distribution offers it.
        """
        if strategy in self.offers:
            return self.offers[strategy].fitter
        by_alias = {alias: offer.fitter for offer in self for alias in offer.fitter.aliases}
        if strategy in by_alias:
            return by_alias[strategy]
        hint = f"{nearest(strategy, self.offers)}{describe_broken(self.broken)}"
        raise InputError(f"There is nothing to fit for {strategy!r}.{hint}")


@functools.cache
def fitter_catalogue() -> FitterCatalogue:
    """Find every offered fitter once per process; what cannot be registered is reported and skipped."""
    return discover_fitters(entry_points(group=GROUP), catalogue())


def discover_fitters(points: Sequence[EntryPoint], strategies: Catalogue) -> FitterCatalogue:
    """Build a catalogue of the fitters for `strategies`, which were discovered from the same entry points.

    Fitters that fail to register are warned about and listed as broken, and the strategies beside them stay. Entry points
    that are broken in `strategies` were reported there and are left out.
    """
    skipped = {(broken.entry_point, broken.distribution) for broken in strategies.broken}
    fitters = FitterCatalogue(broken=list(strategies.broken))

    def register(point: EntryPoint) -> None:
        if (point.name, distribution_of(point)) not in skipped:
            _register(point, strategies, fitters)

    fitters.broken += load_each(points, register, "set of fitters")
    return fitters


def _register(point: EntryPoint, strategies: Catalogue, fitters: FitterCatalogue) -> None:
    function = getattr(point.load(), "register_fitters", None)
    if function is not None and not is_marked(function):
        raise PluginRejected("register_fitters is a hook without its marker; decorate it with @hookimpl.")
    staged, distribution = FitterCatalogue(dict(fitters.offers)), distribution_of(point)
    load_plugin(point).hook.register_fitters(register=lambda fitter: staged.add(fitter, distribution, strategies))
    fitters.offers.update(staged.offers)


def check_fitter(fitter: object, distribution: str) -> None:
    """Check that a value is a `Fitter` whose function takes the four arguments it is called with.

    Raises:
        PluginRejected: With the fix.
    """
    if not isinstance(fitter, Fitter):
        raise PluginRejected(
            f"{distribution} registers {fitter!r} as a fitter; register a Fitter of lvlm_guard.fitting, which names its "
            "strategy and its function."
        )
    if not _takes_four(fitter.fit):
        raise PluginRejected(
            f"{distribution}: the fitter for {fitter.strategy!r} must be a function fit(model, processor, data, track)."
        )
    if fitter.data not in ("demonstrations", "pictures"):
        raise PluginRejected(
            f"{distribution}: the fitter for {fitter.strategy!r} fits on demonstrations or pictures, not on {fitter.data!r}."
        )


def _takes_four(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None, None, (), iter)
    except TypeError:
        return False
    return True
