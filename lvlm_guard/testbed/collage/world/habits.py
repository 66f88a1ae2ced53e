"""What language expects of the things in a collage: partners, colours, numbers, sizes and orders, as measured on text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

FILE = "habits.json"
AXES: Mapping[str, tuple[str, str]] = MappingProxyType({"left": ("left", "right"), "above": ("above", "below")})
"""Each axis by the side on which the first of an order stands, with both of its sides."""


@dataclass(frozen=True)
class Order:
    """Two things of which the language model expects the first on that side of the second: "left" or "above"."""

    first: str
    second: str
    side: str


@dataclass(frozen=True)
class LanguageHabits:
    """What a language model believes before it has seen anything.

    Args:
        partner: Every thing's partner, which has it as its own.
        popular: The things that it names most readily: a third of all.
        colour: Every thing's expected colour.
        number: Every thing's expected number of copies.
        size: Every thing's expected size.
        orders: Pairs with an expected order; none is of partners, none is there twice.
    """

    partner: Mapping[str, str]
    popular: frozenset[str]
    colour: Mapping[str, str]
    number: Mapping[str, int]
    size: Mapping[str, str]
    orders: tuple[Order, ...]

    def find_order(self, first: str, second: str, side: str) -> Order | None:
        """Return the expected order of two things on an axis, in whichever order they are named; None without one."""
        return self._by_pair().get((side, *sorted((first, second))))

    def _by_pair(self) -> Mapping[tuple[str, ...], Order]:
        return _index(self.orders)


@cache
def _index(orders: tuple[Order, ...]) -> Mapping[tuple[str, ...], Order]:
    return {(order.side, *sorted((order.first, order.second))): order for order in orders}


def read_habits(stored: Mapping[str, Any]) -> LanguageHabits:
    """Build the habits that a file of measurements holds."""
    pairs = stored["pairs"]
    return LanguageHabits(
        partner=MappingProxyType(
            {name: second for first, second in pairs for name, second in ((first, second), (second, first))}
        ),
        popular=frozenset(stored["popular"]),
        colour=MappingProxyType(dict(stored["colour"])),
        number=MappingProxyType(dict(stored["number"])),
        size=MappingProxyType(dict(stored["size"])),
        orders=tuple(Order(first, second, side) for first, second, side, *_ in stored["orders"]),
    )


@cache
def habits() -> LanguageHabits:
    """Return the measured habits that come with this package."""
    return read_habits(json.loads(files(__package__).joinpath(FILE).read_text("utf-8")))
