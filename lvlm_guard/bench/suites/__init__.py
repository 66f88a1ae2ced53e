"""The catalogue of suites, imported one by one when they are asked for.

A suite is one file: a frozen dataclass that satisfies `lvlm_guard.bench.suite.Suite`, and one line here. `files.py` reads
rows with line numbers and pictures, `yes_no.py` holds the measures of yes/no answers, `lvlm_guard.bench.scoring.parsers` the
parsers. What further benchmarks would take:

- MMVP: `Questions.csv` as rows, the pictures by number, `parsers` of (a)/(b), and a measure grouped by consecutive rows as
  in `sugarcrepe.py`; the version of the four corrected labels is a constructor argument.
- R-Bench: a JSON array with the keys of POPE; `pope.py` with another level and the kinds of its `type`.
- PhD: two items per row of `data.json` (the yes- and the no-question); its index is `harmonic_recall` of `yes_no.py`.
- MMHal-Bench: items without a measure, `export` as in `amber.py`, and the judge's ratings read back.
"""

from __future__ import annotations

import importlib
from typing import Any

from lvlm_guard.errors import InputError, nearest

_PLACES = {
    "amber": "lvlm_guard.bench.suites.amber:Amber",
    "chair": "lvlm_guard.bench.suites.chair:Chair",
    "hallusionbench": "lvlm_guard.bench.suites.hallusionbench:HallusionBench",
    "mme": "lvlm_guard.bench.suites.mme:Mme",
    "pope": "lvlm_guard.bench.suites.pope:Pope",
    "reefknot": "lvlm_guard.bench.suites.reefknot:Reefknot",
    "scenes": "lvlm_guard.testbed.suite:Scenes",
    "sugarcrepe": "lvlm_guard.bench.suites.sugarcrepe:SugarCrepe",
}


def suites() -> tuple[str, ...]:
    """Names of all suites, in order."""
    return tuple(_PLACES)


def suite(name: str) -> Any:
    """The class of a suite, to be made with its arguments: `suite("pope")(prompt_suffix=" One word.")`.

    Raises:
        InputError: There is no suite of that name; names the nearest.
    """
    if name not in _PLACES:
        raise InputError(f"There is no suite {name!r}.{nearest(name, _PLACES)}")
    module, _, found = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), found)
