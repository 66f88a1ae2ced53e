"""Every bundled strategy and control on the testbed's scenes: `python benchmarks/scenes.py run testbed --out RUNS`.

`run` answers both splits with one model (a folder that `testbed train` made, or `testbed`) and resumes where it was stopped; `table`
scores all runs under RUNS and writes the pages and figures to commit. Strategies have their published settings, those that
are fitted beforehand are fitted on training scenes of the same model. Figures of small models on drawn scenes: nothing
about others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from effects import DISTRIBUTION, SCORER, fitted
from measuring import table, write_at_once

from lvlm_guard import GuardError, Stack
from lvlm_guard.bench import choosing, export, results, runner, store, systems, verdicts
from lvlm_guard.bench.manifest import Chosen, Plan
from lvlm_guard.bench.results import Results
from lvlm_guard.cli import loading
from lvlm_guard.plugins import catalogue
from lvlm_guard.testbed.suite import Scenes

SEED = 41
SPLITS = {"counterfactual": 450, "iid": 350}
"""Scenes of each split: more than 1,000 questions, and 300 captions."""

CAPTIONS = 300
HEADLINES = {
    "balanced_object": "object",
    "accuracy_attribute": "attribute",
    "accuracy_relation": "relation",
    "chair_i": "caption",
}
"""The measure of each level that verdicts are about, and what the table calls it."""

SHOWN = (
    "architecture", "model", "split", "system", "object", "attribute", "relation", "caption", "recall", "words", "yes", "auc",
    "changed", "forwards", "time",
)  # fmt: skip


def stacks(model: Any, processor: Any, folder: Path) -> dict[str, Stack]:
    """Every bundled strategy alone, at published settings; what has to be fitted is fitted into the folder once."""
    kept = folder / "fitted"
    kept.mkdir(parents=True, exist_ok=True)
    wanted = {name: {"artefact": str(kept / f"{name}.safetensors")} for name in ("vti", "nullu", "adhh")}
    if not all(Path(one["artefact"]).is_file() for one in wanted.values()):
        fitted(model, processor, kept)
    parameters: Mapping[str, Any] = {**wanted, **SCORER}
    names = [one.name for one in catalogue() if one.distribution == DISTRIBUTION and one.name not in systems.CONTROLS]
    return {name: Stack.of([{"name": name, "params": dict(parameters.get(name, {}))}]) for name in names}


def run(name: str, splits: Iterable[str], out: Path, limit: int | None) -> None:
    """Answer the scenes of some splits with one model."""
    loading.quieten()
    model, processor = loading.load(name)
    label = "testbed" if name == loading.BUNDLED else Path(name).name
    lined_up = systems.line_up(stacks(model, processor, out / label))
    for split in splits:
        arguments = {"split": split, "count": SPLITS[split], "seed": SEED, "captions": CAPTIONS}
        suite = Chosen(Scenes(**arguments), "ours", arguments)  # type: ignore[arg-type]
        plan = Plan({"scenes": suite}, lined_up, limit=limit, batch=32)
        runner.run(plan, model, processor, out / label / split, model_id=label)


def rows(scored: Results, model: str, split: str) -> list[dict[str, Any]]:
    """A row for every system of a run."""
    values = {(one.system, one.measure): one for one in scored.scores}
    architecture = str(scored.manifest["model"]["class"]).removesuffix("ForConditionalGeneration")
    found = []
    for outcome in scored.outcomes:
        told = {column: _cell(values.get((outcome.system, measure))) for measure, column in HEADLINES.items()}
        row = {"architecture": architecture, "model": model, "split": split, "system": outcome.system, **told}
        for measure, column in (("recall", "recall"), ("length", "words"), ("yes_ratio", "yes")):
            score = values.get((outcome.system, measure))
            row[column] = None if score is None else f"{score.found.value:.3g}"
        row["auc"] = f"{outcome.auc['all']:.3f}" if "all" in outcome.auc else None
        row["changed"] = None if outcome.changed is None else f"{outcome.changed.share:.1%}"
        if (spent := outcome.spent) is not None:
            row["forwards"] = f"{spent.prefill:.3g} + {spent.decode * spent.rows_per_forward:.3g}"
            row["time"] = None if spent.ratio is None else f"{spent.ratio:.2f}x"
        found.append(row)
    return found


def _cell(score: results.Score | None) -> str | None:
    if score is None:
        return None
    test = score.against_greedy
    if test is None:
        return f"{score.found.value:.3f} [{score.found.low:.3f}, {score.found.high:.3f}]"
    sure = test.adjusted_p is not None and test.adjusted_p < verdicts.SURE
    return f"{score.found.value:.3f} ({test.difference.value:+.3f}{'*' if sure else ''})"


def judged(record: store.Record, scored: Results) -> dict[str, dict[str, verdicts.Verdict]]:
    """Verdicts by level and system: the rules of the report page, once for each level's headline."""
    measures = choosing.measures(Scenes(), "ours", None)
    said = {system: record.said(system, "scenes") for system in record.systems}
    found = {}
    for name, level in HEADLINES.items():
        first = [one for one in scored.scores if one.measure == name]
        own = dataclasses.replace(scored, scores=first + [one for one in scored.scores if one.measure != name])
        found[level] = {one.system: one for one in verdicts.verdicts(own, "scenes", measures, said)}
    return found


def summary(found: Mapping[str, Mapping[str, verdicts.Verdict]]) -> str:
    """Which strategies do what, by level, in words."""
    lines = []
    for level, own in found.items():
        lines.append(f"- **{level}**")
        for kind, meaning in verdicts.KINDS.items():
            if names := [f"`{name}`" for name, one in own.items() if one.kind == kind]:
                lines.append(f"  - {kind}: {', '.join(names)}. _{meaning}_")
    return "\n".join(lines)


def tabulate(runs: Path, out: Path) -> None:
    """Score every run and write one page, and the figures and manifest of each run."""
    parts = ["# Every strategy on the testbed's scenes", INTRODUCTION]
    for manifest in sorted(runs.glob("*/*/manifest.json")):
        folder = manifest.parent
        model, split = folder.parent.name, folder.name
        record = store.read(folder)
        scored = results.score(record)
        place = out / "scenes"
        place.mkdir(parents=True, exist_ok=True)
        export.write(scored, place, f"{model}-{split}")
        (place / f"{model}-{split}.json").unlink()  # the rows hold it; the nested form is large
        write_at_once(place / f"{model}-{split}.manifest.json", json.dumps(record.manifest, indent=1) + "\n")
        parts += [
            f"## {model}, {split}",
            _about(scored),
            summary(judged(record, scored)),
            table(rows(scored, model, split), SHOWN),
        ]
    write_at_once(out / "scenes.md", "\n\n".join(parts) + "\n")


INTRODUCTION = """`python benchmarks/scenes.py table --out RUNS` writes this page from the raw answers. Strategies stand alone, at published
settings, greedy, fp32. **Small models on drawn scenes: nothing here says what a method does on another model.**

Differences are to `greedy` on the same items; `*` where the p value, corrected by Holm over all strategies of the measure, is below .05
(controls are corrected apart). Intervals resample whole scenes. object: balanced accuracy of existence questions; attribute
and relation: accuracy; caption: share of named objects that are absent (CHAIR_i, lower is better), to be read beside recall and
words. yes: share of yes. auc: of the margin between yes and no. forwards: of a prompt + of a token, in rows of plain
generate. time: median over batches of time in generate over greedy's, other work on the machine included."""


def _about(scored: Results) -> str:
    manifest = scored.manifest
    counts = {one.measure: one.n for one in scored.scores if one.system == systems.GREEDY}
    questions = sum(
        counts.get(name, 0)
        for name in ("balanced_object", "accuracy_attribute", "accuracy_relation", "accuracy_vertical")
    )
    refused = [f"`{one.system}` refused: {one.refused.reason}" for one in scored.outcomes if one.refused is not None]
    told = f"{questions} questions and {counts.get('length', counts.get('recall', 0))} captions counted for objects; seed {SEED}; "
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
    return "\n".join([told + versions + ".", *refused])


def main(given: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Every bundled strategy and control on the testbed's scenes.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="answer the scenes with one model; resumes")
    running.add_argument("model", help="`testbed`, or a folder that `lvlm-guard testbed train` made")
    running.add_argument("--split", choices=SPLITS, action="append", help="both unless told")
    running.add_argument("--limit", type=int, help="at most so many items, to see that it works")
    tabling = commands.add_parser("table", help="score all runs and write the page")
    tabling.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    for one in (running, tabling):
        one.add_argument("--out", type=Path, required=True, help="folder of the runs")
    asked = parser.parse_args(given)
    transformers.logging.set_verbosity_error()
    try:
        if asked.command == "run":
            run(asked.model, asked.split or list(SPLITS), asked.out, asked.limit)
        else:
            tabulate(asked.out, asked.results)
    except GuardError as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
