"""Choose the demo's default stack on calibration scenes: `python benchmarks/choose_stack.py`.

Writes `lvlm_guard/testbed/demo_stack.toml` and `benchmarks/results/demo_stack.md`. No scene that figures are reported on
is looked at.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from lvlm_guard import Guard, GuardError
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed import load
from lvlm_guard.testbed.demo import STACK
from lvlm_guard.testbed.evaluate import Evaluation, evaluate
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.measures import DEMO_MEASURES, Comparison, compare
from lvlm_guard.testbed.world.scenes import scenes

SPLIT = "calibration"
SCENES = 400
SEED = 17
DISTRIBUTION = "lvlm-guard"
LEVELS = ("object", "attribute", "relation", "caption")
"""The measures a candidate is judged by; `caption` is the share of named objects that are absent, lower is better."""

RECALL_LOSS = 0.03
"""How much less of what is there a candidate's captions may name."""

TABLE = Path(__file__).resolve().parent / "results" / "demo_stack.md"

LEFT_OUT = ("control", "search")
"""Families that are no candidates."""

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
)
"""Beside every strategy at its defaults."""


@dataclass(frozen=True)
class Result:
    """One candidate against plain generation; `refused` is why it could not run."""

    entries: tuple[Mapping[str, Any], ...]
    compared: Mapping[str, Comparison]
    ms_per_token: float
    refused: str = ""

    @property
    def label(self) -> str:
        """The stack in a few words."""
        return " + ".join(_entry(one) for one in self.entries) or "no strategy"

    @property
    def gain(self) -> float:
        """Mean difference over the levels, each counted so that more is better."""
        signs = (1 if DEMO_MEASURES[name].higher_is_better else -1 for name in LEVELS)
        return sum(sign * self.compared[name].difference.value for sign, name in zip(signs, LEVELS, strict=True)) / 4

    @property
    def dropped(self) -> str:
        """Why it cannot be chosen; empty where it can."""
        if self.refused:
            return "refused"
        worse = [name for name in LEVELS if DEMO_MEASURES[name].verdict(self.compared[name].difference) == "worse"]
        if worse:
            return f"worse: {', '.join(worse)}"
        return "names less" if self.compared["caption_recall"].difference.value < -RECALL_LOSS else ""


def _entry(one: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in one.get("params", {}).items())
    return f"{one['name']} ({settings})" if settings else str(one["name"])


def candidates() -> list[tuple[dict[str, Any], ...]]:
    """No strategy, every bundled one at its defaults, and the listed settings; controls and searches left out.

    A control is no mitigation, and a search takes many times as long as a first look at the demo should.
    """
    offers = [offer.describe() for offer in catalogue() if offer.distribution == DISTRIBUTION]
    alone = [({"name": one["name"], "params": {}},) for one in offers if one["family"] not in LEFT_OUT]
    return [(), *alone, *SETTINGS]


def measure(entries: Sequence[Mapping[str, Any]], plain: Evaluation, asked: Mapping[str, Any]) -> Result:
    """Answers all scenes with a stack and compares with the plain answers."""
    try:
        guard = Guard(asked["model"], asked["processor"], list(entries))
        found = evaluate(guard.generate, asked["processor"], asked["scenes"], progress=False)
    except GuardError as refusal:
        return Result(tuple(entries), {}, 0.0, f"{type(refusal).__name__}: {refusal}")
    return Result(tuple(entries), compare(plain.answers, found.answers), found.cost.ms_per_token)


def choose(results: Sequence[Result]) -> Result:
    """The one that gains most of those that make nothing worse; the empty stack, which gains nothing, is one of them."""
    return max((one for one in results if not one.dropped), key=lambda one: one.gain)


def toml(chosen: Result) -> str:
    """The stack file."""
    head = f"# Chosen by benchmarks/choose_stack.py on the {SPLIT} split; the whole table: benchmarks/results/demo_stack.md\n"
    if not chosen.entries:
        return head + "stack = []\n"
    return head + "\n".join(_toml_entry(one) for one in chosen.entries)


def _toml_entry(one: Mapping[str, Any]) -> str:
    lines = ["[[stack]]", f"name = {json.dumps(one['name'])}"]
    if one.get("params"):
        pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in one["params"].items())
        lines.append(f"params = {{{pairs}}}")
    return "\n".join(lines) + "\n"


def page(results: Sequence[Result], chosen: Result, plain: Evaluation, count: int, seed: int) -> str:
    """The whole table with how it came about."""
    names = (*LEVELS, "caption_spoilt", "caption_recall", "caption_colour")
    head = ("stack", "gain", *names, "ms per token", "")
    rows = [" | ".join(head), "|".join(["---"] * len(head)), " | ".join(_plain(results[0], names, plain))]
    for one in sorted(results, key=lambda one: (bool(one.refused), 0 if one.refused else -one.gain)):
        mark = one.dropped or ("**chosen**" if one is chosen else "")
        rows.append(" | ".join(_cells(one, names, mark)))
    wordings = "\n".join(f"- `{name}`: {DEMO_MEASURES[name].title}" for name in names)
    table = "\n".join(f"| {row} |" for row in rows)
    refusals = "\n".join(f"- {one.label}: {one.refused}" for one in results if one.refused)
    return f"""# The demo's default stack

Chosen by `python benchmarks/choose_stack.py --scenes {count} --seed {seed}` on {count} scenes of the `{SPLIT}` split. **Nothing was
chosen on evaluation scenes**: `counterfactual` and `iid`, which the demo and the model card report, were not looked at.

Greedy, fp32, one run, on a CPU; torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}. Cells are guarded
minus plain with 95 % paired bootstrap intervals over scenes. *Gain* is the mean over object, attribute, relation and minus
caption. A candidate is dropped where one of these four is worse by its interval, or where its captions name over
{RECALL_LOSS:.0%} less of what is there. There is no correction for the number of candidates. Half of these scenes follow the habits,
so differences are smaller than on counterfactual scenes alone. These figures are of one small model on drawn scenes.

{wordings}

{table}
{chr(10) + "Could not run:" + chr(10) + chr(10) + refusals + chr(10) if refusals else ""}"""


def _plain(empty: Result, names: Sequence[str], plain: Evaluation) -> tuple[str, ...]:
    """The first row: what the model scores by itself."""
    scores = [f"{empty.compared[name].plain.value:.3f}" for name in names]
    return ("*plain, its scores*", "", *scores, f"{plain.cost.ms_per_token:.2f}", "")


def _cells(one: Result, names: Sequence[str], mark: str) -> tuple[str, ...]:
    if one.refused:
        return (one.label, "", *("" for _ in names), "", mark)
    changes = [one.compared[name].difference for name in names]
    told = [f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" for change in changes]
    return (one.label, f"{one.gain:+.4f}", *told, f"{one.ms_per_token:.2f}", mark)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Chooses the demo's default stack on calibration scenes.")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--stack", type=Path, default=STACK, help="the stack file to write")
    parser.add_argument("--table", type=Path, default=TABLE, help="the page to write")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # in a model this small, threads wait for each other longer than they work
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, processor = load()
    given = scenes(SPLIT, asked.scenes, asked.seed)
    plain = evaluate(model.generate, processor, given)
    parts = {"model": model, "processor": processor, "scenes": given}
    results = [measure(one, plain, parts) for one in tqdm(candidates(), desc="candidates", unit="stack")]
    chosen = choose(results)
    write_whole(asked.stack, toml(chosen).encode("utf-8"))
    write_whole(asked.table, page(results, chosen, plain, asked.scenes, asked.seed).encode("utf-8"))
    sys.stdout.write(f"{chosen.label}: {asked.stack}, {asked.table}\n")


if __name__ == "__main__":
    main()
