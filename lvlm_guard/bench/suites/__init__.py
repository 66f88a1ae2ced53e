"""The bundled suites of published benchmarks.

A suite is one file, a frozen dataclass that satisfies `lvlm_guard.bench.suite.Suite`, and one entry point of the group
`lvlm_guard.suites`, in `pyproject.toml`. `files.py` reads
rows with line numbers and pictures, `yes_no.py` holds the measures of yes/no answers, `lvlm_guard.bench.scoring.parsers` the
parsers. What further benchmarks would take:

- MMVP: `Questions.csv` as rows, the pictures by number, `parsers` of (a)/(b), and a measure grouped by consecutive rows as
  in `sugarcrepe.py`; the version of the four corrected labels is a constructor argument.
- R-Bench: a JSON array with the keys of POPE; `pope.py` with another level and the kinds of its `type`.
- PhD: two items per row of `data.json` (the yes- and the no-question); its index is `harmonic_recall` of `yes_no.py`.
- MMHal-Bench: items without a measure, `export` as in `amber.py`, and the judge's ratings read back.
"""

from __future__ import annotations

import warnings
from typing import Any

_MOVED = {"suite": "catalogue().find(name).suite", "suites": "catalogue().names"}


def __getattr__(name: str) -> Any:
    """Return the functions that `lvlm_guard.bench.catalogue` replaces, with a warning."""
    from lvlm_guard.bench.catalogue import catalogue  # noqa: PLC0415 - the catalogue is read only when it is needed

    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"lvlm_guard.bench.suites.{name} is deprecated; use lvlm_guard.bench.catalogue: {_MOVED[name]}",
        DeprecationWarning,
        stacklevel=2,
    )
    return (lambda suite: catalogue().find(suite).suite) if name == "suite" else (lambda: catalogue().names)
