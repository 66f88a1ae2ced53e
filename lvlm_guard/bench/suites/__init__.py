"""The bundled suites of published benchmarks.

A suite is one file, a frozen dataclass that satisfies `lvlm_guard.bench.suite.Suite`, and one entry point of the group
`lvlm_guard.suites`, in `pyproject.toml`. `files.py` reads rows with line numbers and pictures, `yes_no.py` holds the measures
of yes/no answers, `lvlm_guard.bench.scoring.parsers` the parsers. What further benchmarks would take:

- MMVP: `Questions.csv` as rows, the pictures by number, `parsers` of (a)/(b), and a measure grouped by consecutive rows as
  in `sugarcrepe.py`; the version of the four corrected labels is a constructor argument.
- R-Bench: a JSON array with the keys of POPE; `pope.py` with another level and the kinds of its `type`.
- PhD: two items per row of `data.json` (the yes- and the no-question); its index is `harmonic_recall` of `yes_no.py`.
- MMHal-Bench: items without a measure, `export` as in `amber.py`, and the judge's ratings read back.
"""

from __future__ import annotations

from lvlm_guard.deprecation import moved_names

__getattr__ = moved_names(
    __name__,
    {"suite": "lvlm_guard.bench.catalogue:find_suite", "suites": "lvlm_guard.bench.catalogue:list_suites"},
)
