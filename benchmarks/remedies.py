"""What remedies cure on held-out items: `python benchmarks/remedies.py --out FOLDER`.

Remedies are measured on calibration scenes. On held-out scenes every wrong answer gets the one remedy that is proposed for its
level and margin, and beside it the best single strategy of the calibration scenes, a strategy drawn at random, and the
fitted push towards yes or no: each runs the model once more. What they would do to right answers is counted too, since
nobody knows which answers are wrong. Writes `benchmarks/results/remedies.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvlm_guard import Stack, loading
from lvlm_guard.bench.scoring.intervals import by_cluster, format_interval, interval
from lvlm_guard.bench.scoring.significance import Significance, significance
from lvlm_guard.files import write_whole
from lvlm_guard.tuning.answering import TunedModel
from lvlm_guard.tuning.remedies import FITTED_BIAS, CaseRow, RemedyTable, measure
from lvlm_guard.tuning.splits import split_suite

RESULTS = Path(__file__).resolve().parent / "results" / "remedies"
WRONG = 200
"""Wrong answers that are counted, the first ones."""

REMEDIES = ("avisc", "dola", "icd", "m3id", "memvr", "sla", "vaf", "vcd", "vdd", "vsv")
PROPOSED, SINGLE, RANDOM, THREE = "first proposed", "best single", "random", "any of three proposed"


@dataclass(frozen=True)
class Policy:
    """A rule from an item to how likely its answer is right afterwards."""

    name: str
    apply: Callable[[CaseRow], float]


def build_policies(table: RemedyTable, names: Sequence[str]) -> list[Policy]:
    """Return the rules; all but the last run one remedy for each item."""

    def first(row: CaseRow) -> float:
        return float(row.answers[table.propose(row.level, row.margin, 1)[0].name][1])

    def three(row: CaseRow) -> float:
        return float(any(row.answers[proposal.name][1] for proposal in table.propose(row.level, row.margin, 3)))

    best = find_single(table)
    return [
        Policy(PROPOSED, first),
        Policy(f"{SINGLE} ({best})", lambda row: float(row.answers[best][1])),
        Policy(RANDOM, lambda row: sum(row.answers[name][1] for name in names) / len(names)),
        Policy(f"control: {FITTED_BIAS}", lambda row: float(row.answers[FITTED_BIAS][1])),
        Policy(THREE, three),
    ]


def find_single(table: RemedyTable) -> str:
    """Return the remedy that cured most calibration items, of which none is known to be wrong less what it broke."""

    def net(name: str) -> tuple[int, str]:
        counts = table.measure(name, table.rows)
        return (-(counts.cured - counts.broken), name)

    return min(table.remedies, key=net)


def select(rows: Iterable[CaseRow], names: Sequence[str], wrong: int) -> tuple[list[CaseRow], list[CaseRow]]:
    """Return the first wrong answers, and the right ones about the same pictures or those before."""
    usable = [row for row in rows if all(name in row.answers for name in (*names, FITTED_BIAS))]
    places = [place for place, row in enumerate(usable) if not row.right][:wrong]
    seen = usable[: places[-1] + 1] if places else []
    return [row for row in seen if not row.right], [row for row in seen if row.right]


def compare(first: Policy, second: Policy, rows: Sequence[CaseRow]) -> Significance:
    """Compare the shares that two rules leave right."""
    before, after = ([(policy.apply(row), 1.0) for row in rows] for policy in (second, first))
    return significance(before, after, [row.cluster for row in rows])


def measure_policies(table: RemedyTable, held_out: RemedyTable, wrong_limit: int) -> dict[str, Any]:
    """Return all figures."""
    names = [name for name in table.remedies if name in held_out.remedies]
    policies = build_policies(table, names)
    wrong, right = select(held_out.rows, names, wrong_limit)
    figures = {}
    for policy in policies:
        cured = [(policy.apply(row), 1.0) for row in wrong]
        broken = [(1 - policy.apply(row), 1.0) for row in right]
        lead = None if policy is policies[0] else compare(policies[0], policy, wrong)
        figures[policy.name] = {
            "cured": sum(value for value, _ in cured),
            "cured_share": write(interval(by_cluster([row.cluster for row in wrong], cured)), wrong),
            "broken": sum(value for value, _ in broken),
            "broken_share": write(interval(by_cluster([row.cluster for row in right], broken)), right),
            "lead": None
            if lead is None
            else f"{format_interval(lead.difference, lead.clusters, signed=True)}, p {lead.p:.3f}",
        }
    return {
        "calibration": {**table.suite, "rows": len(table.rows), "wrong": sum(not row.right for row in table.rows)},
        "held_out": {**held_out.suite, "wrong": len(wrong), "right": len(right)},
        "edges": list(table.edges),
        "remedies": names,
        "refusals": dict(table.refusals),
        "policies": figures,
        "cells": describe_cells(table),
    }


def write(score: Any, rows: Sequence[CaseRow]) -> str:
    """Write a share with its interval."""
    return format_interval(score, len({row.cluster for row in rows}))


def describe_cells(table: RemedyTable) -> list[dict[str, Any]]:
    """Return what the first proposal of every level and bin did to calibration items."""
    cells = sorted({(row.level, table.find_bin(row.margin)) for row in table.rows})
    described = []
    for level, bin_name in cells:
        rows = table.cell(level, bin_name)
        proposal = table.propose(level, rows[0].margin, 1)[0]
        described.append(
            {
                "level": level,
                "margin": bin_name,
                "remedy": proposal.name,
                **vars(proposal.cures),
                "control": vars(proposal.control),
            }
        )
    return described


def format_page(figures: dict[str, Any], command: str) -> str:
    """Return the page."""
    searched, judged = figures["calibration"], figures["held_out"]
    rows = [
        f"| {name} | {values['cured']:.1f} | {values['cured_share']} | {values['broken']:.1f} | {values['broken_share']} | {values['lead'] or ''} |"
        for name, values in figures["policies"].items()
    ]
    cells = [
        f"| {cell['level']} | {cell['margin']} | {cell['remedy']} | {cell['cured']} of {cell['wrong']} | {cell['broken']} of {cell['right']} | "
        f"{cell['control']['cured']} of {cell['control']['wrong']} |"
        for cell in figures["cells"]
    ]
    edges = ", ".join(f"{edge:.2f}" for edge in figures["edges"])
    return "\n".join(
        [
            "# Remedies for wrong answers of the bundled model",
            "",
            f"`{command}`",
            "",
            (
                f"Measured on {searched['rows']} questions about {searched['pictures']} calibration scenes, of which {searched['wrong']} were answered "
                f"wrongly; tried on the first {judged['wrong']} wrong answers to held-out questions, and on the {judged['right']} right answers beside "
                f"them. Remedies: {', '.join(figures['remedies'])}, each at its published values. Every row but the last runs the model once more for "
                "an item. Intervals are 95 %, scenes resampled as wholes; leads are of the first row over the others, on wrong answers. "
                "One small model on drawn scenes."
            ),
            "",
            "| rule | cured | share of wrong | broken | share of right | lead of the first row |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## First proposals, on calibration scenes",
            "",
            f"Margins between yes and no are binned at {edges} nats, `0` the least sure; `none` has no such margin.",
            "",
            "| level | margin | remedy | cured | broken | cured by the control |",
            "| --- | --- | --- | --- | --- | --- |",
            *cells,
            "",
        ]
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Measures remedies on calibration scenes and tries them on held-out ones."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers; the same command goes on there")
    parser.add_argument("--calibration", type=int, default=60, help="calibration scenes")
    parser.add_argument("--scenes", type=int, default=120, help="held-out scenes")
    parser.add_argument("--wrong", type=int, default=WRONG, help="wrong answers that are counted")
    parser.add_argument("--seed", type=int, default=11, help="of the scenes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the files to write, without their endings")
    arguments = parser.parse_args()
    loading.quieten()
    model, processor = loading.load(loading.BUNDLED, None, "auto")
    subject = TunedModel(model, processor, loading.BUNDLED, batch=64)
    spec = f"scenes:captions=0,seed={arguments.seed}"
    splits = split_suite(f"{spec},count={arguments.scenes}", f"{spec},split=calibration,count={arguments.calibration}")
    stacks = {name: Stack.of(name) for name in REMEDIES}
    tables = [
        measure(subject, part, stacks, arguments.out / label, track=tqdm)
        for label, part in (("calibration", splits.calibration), ("held_out", splits.held_out))
    ]
    figures = measure_policies(tables[0], tables[1], arguments.wrong)
    command = (
        f"python benchmarks/remedies.py --out FOLDER --calibration {arguments.calibration} --scenes {arguments.scenes} "
        f"--wrong {arguments.wrong} --seed {arguments.seed}"
    )
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    write_whole(arguments.results.with_suffix(".json"), text.encode("utf-8"))
    write_whole(arguments.results.with_suffix(".md"), format_page(figures, command).encode("utf-8"))
    sys.stdout.write(f"{arguments.results.with_suffix('.md')}\n")


if __name__ == "__main__":
    main()
