"""What is kept of a scored run beside its page, so that a later run of another model stands in one table with it.

The raw answers of a run are large and stay where they were made. Rows of figures, the manifest and the verdicts are committed, and are
enough to put runs side by side again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from measuring import write_at_once
from scenes_pages import Run

from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.significance import Significance

VERDICTS = ".verdicts.json"


def keep(run: Run, place: Path) -> None:
    """Write the verdicts of a run and what its rows do not say, beside them."""
    told = {
        "model": run.model,
        "split": run.split,
        "world": run.world,
        "design": run.design,
        "captions": run.captions,
        "unfit": run.unfit,
        "titles": {score.measure: [score.title, score.higher_is_better] for score in run.scored.scores},
        "verdicts": {level: {name: verdict.kind for name, verdict in own.items()} for level, own in run.judged.items()},
    }
    write_at_once(place / f"{run.name}{VERDICTS}", json.dumps(told, indent=1) + "\n")


def recall(place: Path) -> list[Run]:
    """Read the runs that were kept in a folder."""
    return [_recall(place, path.name.removesuffix(VERDICTS)) for path in sorted(place.glob(f"*{VERDICTS}"))]


def _recall(place: Path, name: str) -> Run:
    told = json.loads((place / f"{name}{VERDICTS}").read_text(encoding="utf-8"))
    manifest = json.loads((place / f"{name}.manifest.json").read_text(encoding="utf-8"))
    with (place / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    roles = {row["system"]: row["role"] for row in rows}
    outcomes = [Outcome(told["world"], system, role, 0, 0) for system, role in roles.items()]
    scores = [_score(row, *told["titles"][row["measure"]]) for row in rows]
    judged = {
        level: {system: Verdict(told["world"], system, kind, "") for system, kind in own.items()}
        for level, own in told["verdicts"].items()
    }
    scored = Results(manifest, {told["world"]: "ours"}, outcomes, scores)
    design, unfit = told["design"], told["unfit"]
    return Run(told["model"], told["split"], scored, judged, told["captions"], design, unfit, told["world"])


def _score(row: Mapping[str, str], title: str, higher_is_better: bool | None) -> Score:
    found = _interval(row, "value", "low", "high")
    test = None
    if row["difference"]:
        difference = _interval(row, "difference", "difference_low", "difference_high")
        adjusted = _number(row["adjusted_p"]) if row["adjusted_p"] else None
        test = Significance(difference, _number(row["p"]), int(row["n"]), int(row["clusters"]), row["test"], adjusted)
    return Score(
        row["suite"], row["system"], row["measure"], row["level"], title, higher_is_better,
        found, int(row["n"]), int(row["clusters"]), test,
    )  # fmt: skip


def _interval(row: Mapping[str, str], *names: str) -> Interval:
    return Interval(*(_number(row[name]) for name in names))


def _number(text: str) -> float:
    return float(text) if text else float("nan")
