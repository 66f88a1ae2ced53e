"""Probing model types anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lvlm_guard.testing.zoo.building import TYPES, Specimen
from lvlm_guard.testing.zoo.cells import MechanismCell
from lvlm_guard.testing.zoo.probing import MECHANISMS, TypeProbe
from lvlm_guard.testing.zoo.recipes import RECIPES, Recipe
from lvlm_guard.testing.zoo.table import Entry, check_names, installed_versions

Watch = Callable[[str, str, MechanismCell], None]


def _ignore(name: str, mechanism: str, cell: MechanismCell) -> None:
    """Watch nothing."""


def recheck(names: Iterable[str], watch: Watch = _ignore) -> dict[str, Entry]:
    """TypeProbe every mechanism on some model types.

    Args:
        names: Model types, of those that the installed transformers maps image and text to text.
        watch: Called with type, mechanism and cell as soon as a cell is known.

    Returns:
        Entries by type.

    Raises:
        InputError: A name that is none of them.
    """
    names = list(names)
    check_names(names, TYPES)
    return {name: _probe(name, watch) for name in names}


def _probe(name: str, watch: Watch) -> Entry:
    if reason := RECIPES.get(name, Recipe()).skipped:
        return Entry(skipped=reason)
    probe, cells = TypeProbe(Specimen(name)), {}
    for mechanism in MECHANISMS:
        cells[mechanism] = probe.cell(mechanism)
        watch(name, mechanism, cells[mechanism])
    return Entry(cells, versions=installed_versions())
