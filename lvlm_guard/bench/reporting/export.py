"""Figures as files: JSON with everything, CSV with a row per score."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.bench.files import write_whole
from lvlm_guard.bench.reporting.judging import SuiteVerdicts, list_verdicts
from lvlm_guard.bench.reporting.results import Outcome, Results, Score, to_plain

COLUMNS = (
    "model", "architecture", "suite", "parser", "system", "role", "level", "measure", "value", "low", "high", "n", "clusters",
    "difference", "difference_low", "difference_high", "p", "adjusted_p", "test",
    "changed", "yes_ratio", "auc", "ms_per_token", "time_ratio",
)  # fmt: skip


def write(
    results: Results, folder: Path, name: str = "results", judged: Mapping[str, SuiteVerdicts] | None = None
) -> tuple[Path, Path]:
    """Write `<name>.json`, with the verdicts where there are any, and `<name>.csv`; the paths.

    Raises:
        InputError: They cannot be written.
    """
    paths = folder / f"{name}.json", folder / f"{name}.csv"
    figures = to_plain(results) | ({} if judged is None else {"verdicts": list_verdicts(judged)})
    write_whole(paths[0], (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    write_whole(paths[1], to_csv(results).encode("utf-8"))
    return paths


def to_csv(results: Results) -> str:
    """Write a row for each score; figures of a system on a suite are in each of its rows, unknown values are empty."""
    outcomes = {(outcome.suite, outcome.system): outcome for outcome in results.outcomes}
    model = {"model": results.manifest["model"]["id"], "architecture": results.manifest["model"]["class"]}
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for score in results.scores:
        table.writerow(model | _row(score, outcomes[score.suite, score.system], results.parsers[score.suite]))
    return text.getvalue()


def _row(score: Score, outcome: Outcome, parser: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "suite": score.suite, "parser": parser, "system": score.system, "role": outcome.role, "level": score.level,
        "measure": score.measure, "value": score.found.value, "low": score.found.low, "high": score.found.high, "n": score.n,
        "clusters": score.clusters, "yes_ratio": outcome.yes_ratio, "auc": outcome.auc.get("all"),
    }  # fmt: skip
    if outcome.changed is not None:
        values["changed"] = outcome.changed.share
    if outcome.spent is not None:
        values |= {"ms_per_token": outcome.spent.ms_per_token, "time_ratio": outcome.spent.ratio}
    if (test := score.against_greedy) is not None:
        change = test.difference
        values |= {
            "difference": change.value, "difference_low": change.low, "difference_high": change.high, "p": test.p,
            "adjusted_p": test.adjusted_p, "test": test.test,
        }  # fmt: skip
    return {name: to_plain(value) for name, value in values.items()}
