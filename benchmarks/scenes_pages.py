"""The pages of `scenes.py table`: one for each run, and one that puts the runs side by side."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from measuring import table, write_at_once
from scenes_stacks import LEFT_OUT, read_refused
from worlds import WORLDS

from lvlm_guard.bench.reporting import export, results, verdicts
from lvlm_guard.bench.reporting.answers import read_suite_answers
from lvlm_guard.bench.reporting.results import Results, Score
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.running import choosing, store, systems
from lvlm_guard.bench.scoring import habits
from lvlm_guard.bench.scoring.intervals import format_interval
from lvlm_guard.testbed.scoring import CAPTION

HEADLINES: Mapping[str, Mapping[str, str]] = {
    "balanced": {
        "habit_balanced": "all levels",
        "habit_balanced_object": "object",
        "habit_balanced_attribute": "attribute",
        "habit_balanced_relation": "relation",
        "chair_i": "caption",
    },
    "one_sided": {
        "balanced_object": "object",
        "accuracy_attribute": "attribute",
        "accuracy_relation": "relation",
        "chair_i": "caption",
    },
}
"""The measure of each level that verdicts are about, and what the tables call it, by the design of the suite."""

OWN_FOLDERS = re.compile(r'"[^"]*/(fitted/[^"/]+)"')
NO_CLAIM = ", one-sided (can be won without looking: not for claims)"
"""What is added to the name of a split of the design that the suite had before."""

BESIDE = {"recall": "recall", "recall_habit_breaking": "recall, unusual", "length": "words", "yes_ratio": "yes"}
"""Measures that stand beside the headlines, and what the tables call them."""

COSTS = ("auc", "changed", "forwards", "time")
HALVES = "right / wrong"
HELPS, MIXED, HURTS = "helps, and hurts nowhere", "helps one model and hurts another", "hurts, and helps nowhere"
SHIFTS, SILENCE, NOTHING = (
    "only shifts bias, or gains no more than a control",
    "never told from greedy",
    "changed no answer",
)
MEANINGS = (HELPS, MIXED, SHIFTS, SILENCE, NOTHING, HURTS)
"""What the verdicts of several models come to, best first."""

SILENT = ("indistinguishable from greedy", "changed nothing")
"""Verdicts that need no word in the table of all runs."""

TITLES: Mapping[str, str] = {"scenes": "the testbed's scenes", "collage": "collages of pictures with names"}
"""What the page of a world is about."""

INTRODUCTION = """`python benchmarks/scenes.py table --out RUNS` writes these pages from the raw answers. Strategies stand alone, at published
settings, greedy; stacks of several, and `revise_fitted`, are named so. What is fitted is fitted on training and calibration scenes of the same
model. **Small models on made-up scenes: nothing here says what a method does on another model.**"""

PICTURE = "![Differences to greedy by system, level, split and model]({world}.svg)"

LEGEND = """Differences are to `greedy` on the same items; `*` where the p value, corrected by Holm over all strategies of the measure, is below .05
(controls are corrected apart). Intervals resample whole scenes. all levels, object, attribute, relation: habit-balanced accuracy, and
after it both halves, where habit is right and where it is wrong, with their differences; caption: share of named objects that
are absent (CHAIR_i, lower is better), to be read beside recall, that of lone objects and intruders, and words. yes: share of yes. auc: of the margin between yes and no. forwards: of a prompt + of a token, in rows of plain
generate. time: median over batches of time in generate over greedy's, other work on the machine included."""

TOGETHER = """Each cell: mean difference to greedy over the models of an architecture ({counts}), least and greatest, then in how many of them
the strategy got which verdict (none where it is not told from greedy). caption: CHAIR_i, lower is better; everything else: higher is better."""


@dataclass(frozen=True)
class Run:
    """One model's answers to one split, scored.

    `captions` is how many it was asked for, `design` that of the suite, `unfit` why something could not be fitted for a strategy,
    `world` the name of the suite.
    """

    model: str
    split: str
    scored: Results
    judged: Mapping[str, Mapping[str, Verdict]]
    captions: int
    design: str = "balanced"
    unfit: Mapping[str, str] = field(default_factory=dict)
    world: str = "scenes"

    @property
    def headlines(self) -> Mapping[str, str]:
        """The measure of each level."""
        return HEADLINES[self.design]

    @property
    def title(self) -> str:
        """The split, and that its figures are no ground for claims where they are not."""
        return self.split if self.design == "balanced" else f"{self.split}{NO_CLAIM}"

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the run is."""
        return self.scored.manifest

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.model}-{self.split}"

    @property
    def architecture(self) -> str:
        """The model's class, shortened."""
        return str(self.manifest["model"]["class"]).removesuffix("ForConditionalGeneration")

    @property
    def questions(self) -> int:
        """Questions that headlines or the vertical accuracy count."""
        names = (
            *(name for name, level in self.headlines.items() if level in ("object", "attribute", "relation")),
            "accuracy_vertical",
        )
        return sum(one.n for one in self.scored.scores if one.system == systems.GREEDY and one.measure in names)


def read(folder: Path, world: str = "scenes") -> Run:
    """Score the run of a folder `MODEL/SPLIT` in a world."""
    record = store.read(folder)
    scored = results.score(record)
    captions = sum(one.kind == CAPTION for one in record.items[world])
    unfit = read_refused(folder.parent / "fitted")
    verdicts_of = judged(record, scored, world)
    return Run(folder.parent.name, folder.name, scored, verdicts_of, captions, _design(record, world), unfit, world)


def _design(record: store.Record, world: str) -> str:
    return str(record.manifest["suites"][world]["arguments"].get("design", "balanced"))


def judged(record: store.Record, scored: Results, world: str) -> dict[str, dict[str, Verdict]]:
    """Verdicts by level and system: the rules of the report page, once for each level's headline."""
    description = record.manifest["suites"][world]
    measures = choosing.load_measures(choosing.build_suite(world, description["arguments"]), "ours", None)
    said = read_suite_answers(record, world).by_system
    found = {}
    for name, level in HEADLINES[_design(record, world)].items():
        first = [one for one in scored.scores if one.measure == name]
        own = dataclasses.replace(scored, scores=first + [one for one in scored.scores if one.measure != name])
        found[level] = {one.system: one for one in verdicts.verdicts(own, world, measures, said)}
    return found


def write(runs: Sequence[Run], all_runs: Sequence[Run], out: Path) -> None:
    """The page, figures and manifest of each of `runs`, and the page that puts all runs side by side."""
    world = runs[0].world
    place = out / world
    place.mkdir(parents=True, exist_ok=True)
    for run in runs:
        export.write(run.scored, place, run.name)
        (place / f"{run.name}.json").unlink()  # the rows hold it; the nested form is large
        write_at_once(place / f"{run.name}.manifest.json", write_manifest(run.manifest))
        write_at_once(place / f"{run.name}.md", page(run))
    write_at_once(out / f"{world}.md", overview(all_runs))


def page(run: Run) -> str:
    """What one model did on one split."""
    parts = [
        f"# {run.architecture} `{run.model}`, {run.title}",
        INTRODUCTION,
        _about(run),
        summary(run.judged),
        table(rows(run), _columns(run)),
        LEGEND,
    ]
    return "\n\n".join(parts) + "\n"


def write_manifest(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as it is published: artefacts without the folders of the machine that fitted them."""
    return OWN_FOLDERS.sub(r'"\1"', json.dumps(manifest, indent=1)) + "\n"


def _about(run: Run) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run.manifest["versions"].items())
    refused = [
        f"`{one.system}` refused: {one.refused.reason}" for one in run.scored.outcomes if one.refused is not None
    ]
    unfit = [f"`{kind}` could not be fitted: {reason}" for kind, reason in run.unfit.items()]
    dtype = run.manifest["model"].get("dtype", "float32")
    told = f"{run.questions} questions and {run.captions} captions; {dtype}; {versions}."
    reasons = {**LEFT_OUT, **WORLDS[run.world].left_out}
    left_out = [f"`{name}` is left out: {reason}." for name, reason in reasons.items()]
    return "\n\n".join([told, *refused, *unfit, *left_out])


def summary(found: Mapping[str, Mapping[str, Verdict]]) -> str:
    """Which strategies do what, by level, in words."""
    lines = []
    for level, own in found.items():
        lines.append(f"- **{level}**")
        for kind, meaning in verdicts.KINDS.items():
            if names := [f"`{name}`" for name, one in own.items() if one.kind == kind]:
                lines.append(f"  - {kind}: {', '.join(names)}. _{meaning}_")
    return "\n".join(lines)


def _columns(run: Run) -> tuple[str, ...]:
    levels = (column for measure, level in run.headlines.items() for column in (level, *_halves(measure, level)))
    return ("system", *levels, *BESIDE.values(), *COSTS)


def _halves(measure: str, level: str) -> dict[str, tuple[str, str]]:
    """The column of both halves of a headline and their measures; nothing where it has none."""
    whole, *halves = habits.NAMES
    if not measure.startswith(whole):
        return {}
    first, second = (measure.replace(whole, half, 1) for half in halves)
    return {f"{level}, {HALVES}": (first, second)}


def rows(run: Run) -> list[dict[str, Any]]:
    """A row for every system of a run."""
    values = {(one.system, one.measure): one for one in run.scored.scores}
    found = []
    for outcome in run.scored.outcomes:
        row: dict[str, Any] = {"system": outcome.system}
        for measure, level in run.headlines.items():
            row[level] = _cell(values.get((outcome.system, measure)))
            for column, both in _halves(measure, level).items():
                cells = [_cell(values.get((outcome.system, half))) for half in both]
                row[column] = None if None in cells else " / ".join(map(str, cells))
        for measure, column in BESIDE.items():
            score = values.get((outcome.system, measure))
            row[column] = None if score is None else f"{score.found.value:.3g}"
        row["auc"] = f"{outcome.auc['all']:.3f}" if "all" in outcome.auc else None
        row["changed"] = None if outcome.changed is None else f"{outcome.changed.share:.1%}"
        if (spent := outcome.spent) is not None:
            row["forwards"] = f"{spent.prefill:.3g} + {spent.decode * spent.rows_per_forward:.3g}"
            row["time"] = None if spent.ratio is None else f"{spent.ratio:.2f}x"
        found.append(row)
    return found


def _cell(score: Score | None) -> str | None:
    if score is None:
        return None
    test = score.against_greedy
    if test is None:
        return format_interval(score.found, score.clusters)
    sure = test.adjusted_p is not None and test.adjusted_p < verdicts.SURE
    return f"{score.found.value:.3f} ({test.difference.value:+.3f}{'*' if sure else ''})"


def overview(runs: Sequence[Run]) -> str:
    """All runs side by side."""
    world = runs[0].world
    picture = PICTURE.format(world=world)
    parts = [f"# Every strategy on {TITLES[world]}", INTRODUCTION, picture, table(_models(runs), _MODEL_COLUMNS)]
    for split in dict.fromkeys(run.title for run in runs):
        own = [run for run in runs if run.title == split]
        kinds = {run.architecture: [one for one in own if one.architecture == run.architecture] for run in own}
        counts = ", ".join(f"{name}: {len(alike)}" for name, alike in kinds.items())
        shown = ("system", "architecture", *own[0].headlines.values())
        parts += [
            f"## {split}",
            in_words(own),
            TOGETHER.format(counts=counts),
            table(_side_by_side(kinds), shown),
        ]
    return "\n\n".join(parts) + "\n"


_MODEL_COLUMNS = (
    "architecture", "model", "split", "questions", "captions", *HEADLINES["balanced"].values(), "page",
)  # fmt: skip


def _models(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Greedy's own figures, run by run."""
    found = []
    for run in runs:
        plain = {one.measure: _cell(one) for one in run.scored.scores if one.system == systems.GREEDY}
        told = {column: plain.get(measure) for measure, column in run.headlines.items()}
        link = f"[{run.name}]({run.world}/{run.name}.md)"
        about = {"architecture": run.architecture, "model": run.model, "split": run.title}
        found.append({**about, "questions": run.questions, "captions": run.captions, **told, "page": link})
    return found


def _side_by_side(kinds: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """A row for every system and architecture: what it changes in each level over the models."""
    every = (one.system for runs in kinds.values() for run in runs for one in run.scored.outcomes)
    return [
        {
            "system": name,
            "architecture": architecture,
            **{level: _over_runs(runs, name, measure, level) for measure, level in runs[0].headlines.items()},
        }
        for name in dict.fromkeys(one for one in every if one != systems.GREEDY)
        for architecture, runs in kinds.items()
    ]


def in_words(runs: Sequence[Run]) -> str:
    """What all models together say of each strategy, level by level."""
    lines = []
    for level in runs[0].headlines.values():
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(one for run in runs for one in run.judged[level]):
            kinds = _kinds(runs, level, name)
            words = f" ({', '.join(told)} of {sum(kinds.values())})" if (told := _told(kinds)) else ""
            groups.setdefault(_together(kinds), []).append(f"`{name}`{words}")
        lines.append(f"- **{level}**")
        lines += [f"  - {meaning}: {', '.join(groups[meaning])}." for meaning in MEANINGS if meaning in groups]
    return "\n".join(lines)


def _together(kinds: Mapping[str, int]) -> str:
    """What the verdicts of several models come to."""
    if kinds.get("helps"):
        return MIXED if kinds.get("hurts") else HELPS
    if kinds.get("hurts"):
        return HURTS
    if set(kinds) - set(SILENT):
        return SHIFTS
    return NOTHING if set(kinds) == {"changed nothing"} else SILENCE


def _kinds(runs: Sequence[Run], level: str, name: str) -> Counter[str]:
    return Counter(run.judged[level][name].kind for run in runs if name in run.judged[level])


def _told(kinds: Mapping[str, int]) -> list[str]:
    return [f"{kind} {kinds[kind]}" for kind in verdicts.KINDS if kinds.get(kind) and kind not in SILENT]


def _over_runs(runs: Sequence[Run], system: str, measure: str, level: str) -> str | None:
    tests = [
        one.against_greedy
        for run in runs
        for one in run.scored.scores
        if (one.system, one.measure) == (system, measure) and one.against_greedy is not None
    ]
    if not tests:
        return None
    changes = [one.difference.value for one in tests]
    told = f"{mean(changes):+.3f}" + (f" ({min(changes):+.3f} to {max(changes):+.3f})" if len(changes) > 1 else "")
    words = _told(_kinds(runs, level, system))
    return f"{told}: {', '.join(words)}" if words else told
