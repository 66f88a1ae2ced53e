"""Choose the demo's default stack on calibration scenes: `python benchmarks/choose_stack.py`.

Writes `lvlm_guard/testbed/demo_stack.toml`, what was fitted for it into `fitted` beside it, and `benchmarks/results/demo_stack.md`.
No scene that figures are reported on is looked at, and none that something is fitted on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import scenes_stacks
import torch
import transformers

from lvlm_guard import GuardError, Stack, loading
from lvlm_guard.bench.reporting import results
from lvlm_guard.bench.reporting.results import Outcome, Results
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.scoring.intervals import Interval, format_interval
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed import load
from lvlm_guard.testbed.figures import DEMO_FIGURES
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.model import DEMO_STACK
from lvlm_guard.testbed.running import build_plan
from lvlm_guard.testbed.suite import Scenes

SPLIT: Literal["calibration"] = "calibration"
RESAMPLES = 1000
"""Bootstrap resamples of a difference."""

SCENES = 400
SEED = 17
DISTRIBUTION = "lvlm-guard"
LEVELS = ("object", "attribute", "relation", "caption")
"""The measures a candidate is judged by; `caption` is the share of named objects that are absent, lower is better."""

HABITUAL = ("all_true", "object_true", "attribute_true", "relation_true")
"""Accuracy where habit is right: what gains elsewhere by losing here only moves habit."""

RECALL_LOSS = 0.03
"""How much less of what is there a candidate's captions may name."""

TABLE = Path(__file__).resolve().parent / "results" / "demo_stack.md"

LEFT_OUT = ("control", "search")
"""Families that are no candidates."""

FITTED = "fitted"
"""Stands for the path of an artefact, and names the folder of those that were fitted."""

SETTINGS: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"name": "vcd", "params": {"alpha": 0.5}},),
    ({"name": "vcd", "params": {"alpha": 2.0}},),
    ({"name": "vcd", "params": {"noise_step": 700}},),
    ({"name": "m3id", "params": {"decay": 0.1}},),
    ({"name": "m3id", "params": {"decay": 0.3}},),
    ({"name": "vdd", "params": {"alpha": 0.5}},),
    ({"name": "vdd", "params": {"blank": "none"}},),
    ({"name": "icd", "params": {"alpha": 0.5}},),
    ({"name": "pai", "params": {"alpha": 0.0, "gamma": 1.5}},),
    ({"name": "dola", "params": {"weight": 0.3}},),
    ({"name": "deco", "params": {"alpha": 0.3}},),
    ({"name": "vsv", "params": {"strength": 0.05}},),
    ({"name": "vdd", "params": {"alpha": 0.5}}, {"name": "sla", "params": {}}),
    ({"name": "vcd", "params": {"alpha": 0.5}}, {"name": "m3id", "params": {}}),
    ({"name": "vcd", "params": {"alpha": 0.5}}, {"name": "vdd", "params": {"alpha": 0.5}}),
    ({"name": "revise", "params": {"artefact": FITTED}},),
    ({"name": "patch_evidence", "params": {"artefact": FITTED}}, {"name": "revise", "params": {"artefact": FITTED}}),
    ({"name": "vdd", "params": {"alpha": 0.5}}, {"name": "patch_evidence", "params": {"artefact": FITTED}}),
)
"""Beside every strategy at its defaults."""


@dataclass(frozen=True)
class Result:
    """One candidate against plain generation; `refusal` is why it could not run."""

    entries: tuple[Mapping[str, Any], ...]
    differences: Mapping[str, Interval]
    ms_per_token: float
    refusal: str = ""

    @property
    def label(self) -> str:
        """The stack in a few words."""
        return " + ".join(_entry(entry) for entry in self.entries) or "no strategy"

    @property
    def gain(self) -> float:
        """Mean difference over the levels, each counted so that more is better."""
        signs = (1 if DEMO_FIGURES[name].measure.higher_is_better else -1 for name in LEVELS)
        return sum(sign * self.differences[name].value for sign, name in zip(signs, LEVELS, strict=True)) / 4

    @property
    def dropped(self) -> str:
        """Why it cannot be chosen; empty where it can."""
        if self.refusal:
            return "refused"
        if worse := self._find_worse(LEVELS):
            return f"worse: {', '.join(worse)}"
        if worse := self._find_worse(HABITUAL):
            return f"moves habit: {', '.join(worse)}"
        return "names less" if self.differences["caption_recall"].value < -RECALL_LOSS else ""

    def _find_worse(self, figures: Iterable[str]) -> list[str]:
        return [name for name in figures if DEMO_FIGURES[name].verdict(self.differences[name]) == "worse"]


@dataclass(frozen=True)
class Plain:
    """What the model does by itself."""

    scores: Mapping[str, float]
    ms_per_token: float


def _entry(entry: Mapping[str, Any]) -> str:
    settings = ", ".join(
        FITTED if value == FITTED else f"{name} {value}" for name, value in entry.get("params", {}).items()
    )
    return f"{entry['name']} ({settings})" if settings else str(entry["name"])


def candidates() -> list[tuple[dict[str, Any], ...]]:
    """No strategy, every bundled one at its defaults, and the listed settings; controls and searches left out.

    A control is no mitigation, and a search takes many times as long as a first look at the demo should.
    """
    offers = [offer.describe() for offer in catalogue() if offer.distribution == DISTRIBUTION]
    kept = [offer["name"] for offer in offers if offer["family"] not in LEFT_OUT]
    alone = [({"name": name, "params": {"artefact": FITTED} if _needs_artefact(name) else {}},) for name in kept]
    return [(), *alone, *SETTINGS]


def _needs_artefact(name: str) -> bool:
    return any(
        field.name == "artefact" and field.default is dataclasses.MISSING
        for field in dataclasses.fields(catalogue().find(name))
    )


def locate(entries: Sequence[Mapping[str, Any]], folder: str | Path) -> list[dict[str, Any]]:
    """Return entries with the paths of their artefacts in a folder."""
    return [_locate(entry, Path(folder)) for entry in entries]


def _locate(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if not _is_fitted(entry):
        return dict(entry)
    path = (folder / f"{entry['name']}.safetensors").as_posix()
    return {**entry, "params": {**entry["params"], "artefact": path}}


def _is_fitted(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("params", {}).get("artefact") == FITTED)


def fitted_kinds(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the strategies that something is fitted for."""
    return sorted({entry["name"] for entry in entries if _is_fitted(entry)})


def measure(
    model: Any, processor: Any, entries: Sequence[Sequence[Mapping[str, Any]]], suite: Scenes, folder: Path
) -> tuple[Plain, list[Result]]:
    """Answer a suite with every candidate and compare each with plain generation; the run and what is fitted go into a folder."""
    fitted = folder / FITTED
    _, unfit = scenes_stacks.fit_all(model, processor, fitted, fitted_kinds(chain(*entries)))
    stacks, refusals = _build_stacks([locate(candidate, fitted) for candidate in entries], unfit)
    record = runner.run(build_plan({SPLIT: suite}, stacks), model, processor, folder / "run", model_id=loading.BUNDLED)
    scored = results.score(record, resamples=RESAMPLES)
    outcomes = {outcome.system: outcome for outcome in scored.outcomes}
    refusals |= {
        name: f"{outcome.refused.error}: {outcome.refused.reason}"
        for name, outcome in outcomes.items()
        if outcome.refused is not None
    }
    named = {_system_name(number): tuple(candidate) for number, candidate in enumerate(entries)}
    return _plain(scored, outcomes[systems.GREEDY]), [
        Result(candidate, {}, 0.0, refusals[name])
        if name in refusals
        else Result(candidate, _differences(scored, name), _ms_per_token(outcomes[name]))
        for name, candidate in named.items()
    ]


def _build_stacks(
    entries: Sequence[Sequence[Mapping[str, Any]]], unfit: Mapping[str, str]
) -> tuple[dict[str, Stack], dict[str, str]]:
    """Stacks by system, and why the others cannot be built; `unfit` is why something could not be fitted for a strategy."""
    built = {_system_name(number): _stack_or_reason(candidate, unfit) for number, candidate in enumerate(entries)}
    stacks = {name: stack for name, stack in built.items() if isinstance(stack, Stack)}
    return stacks, {name: reason for name, reason in built.items() if isinstance(reason, str)}


def _stack_or_reason(candidate: Sequence[Mapping[str, Any]], unfit: Mapping[str, str]) -> Stack | str:
    for entry in candidate:
        if entry["name"] in unfit and "artefact" in entry["params"]:
            return f"FitRefused: {unfit[entry['name']]}"
    try:
        return Stack.of(list(candidate))
    except GuardError as error:
        return f"{type(error).__name__}: {error}"


def _system_name(number: int) -> str:
    return f"candidate-{number}"


def _differences(scored: Results, system: str) -> dict[str, Interval]:
    scores = {name: scored.of(SPLIT, figure.measure.name).get(system) for name, figure in DEMO_FIGURES.items()}
    return {
        name: score.against_greedy.difference
        for name, score in scores.items()
        if score is not None and score.against_greedy is not None
    }


def _plain(scored: Results, outcome: Outcome) -> Plain:
    scores = {name: scored.of(SPLIT, figure.measure.name)[systems.GREEDY] for name, figure in DEMO_FIGURES.items()}
    return Plain({name: score.found.value for name, score in scores.items()}, _ms_per_token(outcome))


def _ms_per_token(outcome: Outcome) -> float:
    return outcome.spent.ms_per_token if outcome.spent is not None else math.nan


def choose(measured: Sequence[Result]) -> Result:
    """The one that gains most of those that make nothing worse; the empty stack, which gains nothing, is one of them."""
    return max((result for result in measured if not result.dropped), key=lambda result: result.gain)


def toml(chosen: Result) -> str:
    """The stack file."""
    head = f"# Chosen by benchmarks/choose_stack.py on the {SPLIT} split; the whole table: benchmarks/results/demo_stack.md\n"
    if not chosen.entries:
        return head + "stack = []\n"
    return head + "\n".join(_toml_entry(entry) for entry in locate(chosen.entries, FITTED))


def _toml_entry(entry: Mapping[str, Any]) -> str:
    lines = ["[[stack]]", f"name = {json.dumps(entry['name'])}"]
    if entry.get("params"):
        pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in entry["params"].items())
        lines.append(f"params = {{{pairs}}}")
    return "\n".join(lines) + "\n"


def keep_fitted(chosen: Result, source: Path, kept: Path) -> None:
    """Copy what was fitted for the chosen stack into a folder, and remove what an earlier choice left there."""
    for old in kept.glob("*.safetensors"):
        old.unlink()
    for kind in fitted_kinds(chosen.entries):
        kept.mkdir(exist_ok=True)
        write_whole(kept / f"{kind}.safetensors", (source / f"{kind}.safetensors").read_bytes())


def page(measured: Sequence[Result], chosen: Result, plain: Plain, count: int, seed: int) -> str:
    """The whole table with how it came about."""
    names = (*LEVELS, "caption_spoilt", "caption_recall", "caption_colour")
    head = ("stack", "gain", *names, "ms per token", "")
    rows = [" | ".join(head), "|".join(["---"] * len(head)), " | ".join(_plain_cells(names, plain))]
    for result in sorted(measured, key=lambda result: (bool(result.refusal), 0 if result.refusal else -result.gain)):
        mark = result.dropped or ("**chosen**" if result is chosen else "")
        rows.append(" | ".join(_cells(result, names, mark, count)))
    wordings = "\n".join(f"- `{name}`: {DEMO_FIGURES[name].title}" for name in names)
    table = "\n".join(f"| {row} |" for row in rows)
    refusals = "\n".join(f"- {result.label}: {result.refusal}" for result in measured if result.refusal)
    return f"""# The demo's default stack

Chosen by `python benchmarks/choose_stack.py --scenes {count} --seed {seed}` on {count} scenes of the `{SPLIT}` split. **Nothing was
chosen on evaluation scenes**: `counterfactual` and `iid`, which the demo and the model card report, were not looked at.

Greedy, fp32, one run, on a CPU; torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}. Cells are guarded
minus plain with 95 % paired bootstrap intervals over scenes. *Gain* is the mean over object, attribute, relation and minus
caption. A candidate is dropped where one of these four is worse by its interval, where answers that habit gets right are (it only moves
habit), or where its captions name over {RECALL_LOSS:.0%} less of what is there. There is no correction for the number of candidates. Half of the truths are what habit says, so
nothing is gained by pushing away from it. *fitted*: on training scenes, and on calibration scenes of another seed. These figures are of one small model on drawn scenes.

{wordings}

{table}
{chr(10) + "Could not run:" + chr(10) + chr(10) + refusals + chr(10) if refusals else ""}"""


def _plain_cells(names: Sequence[str], plain: Plain) -> tuple[str, ...]:
    """The first row: what the model scores by itself."""
    scores = [f"{plain.scores[name]:.3f}" for name in names]
    return ("*plain, its scores*", "", *scores, f"{plain.ms_per_token:.2f}", "")


def _cells(result: Result, names: Sequence[str], mark: str, count: int) -> tuple[str, ...]:
    if result.refusal:
        return (result.label, "", *("" for _ in names), "", mark)
    changes = [result.differences[name] for name in names]
    cells = [format_interval(change, count, signed=True) for change in changes]
    return (result.label, f"{result.gain:+.4f}", *cells, f"{result.ms_per_token:.2f}", mark)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Chooses the demo's default stack on calibration scenes.")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--stack", type=Path, default=DEMO_STACK, help="the stack file to write")
    parser.add_argument("--table", type=Path, default=TABLE, help="the page to write")
    parser.add_argument(
        "--out", type=Path, help="folder of the run and of what is fitted; the same command resumes there"
    )
    arguments = parser.parse_args()
    loading.quieten()
    model, processor = load()
    suite = Scenes(split=SPLIT, count=arguments.scenes, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        plain, measured = measure(model, processor, candidates(), suite, folder)
        chosen = choose(measured)
        keep_fitted(chosen, folder / FITTED, arguments.stack.parent / FITTED)
    write_whole(arguments.stack, toml(chosen).encode("utf-8"))
    table = page(measured, chosen, plain, arguments.scenes, arguments.seed)
    write_whole(arguments.table, table.encode("utf-8"))
    sys.stdout.write(f"{chosen.label}: {arguments.stack}, {arguments.table}\n")


if __name__ == "__main__":
    main()
