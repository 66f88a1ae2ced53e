"""What remedies cure on held-out items: `python benchmarks/remedies.py --run FOLDER`.

Reads a run of `scenes.py` and generates nothing. Remedies are the run's stacks. Every picture is held out from the table that proposes for
it, which is measured on the pictures of the other four folds of five. Every wrong answer gets the one remedy that is proposed for its
level and margin, and beside it the best single strategy of those pictures, a strategy drawn at random, and the fitted push
towards yes or no: each runs the model once more. What they would do to right answers is counted too, since nobody
knows which answers are wrong. Writes `benchmarks/results/remedies.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench.reporting.sentences import format_p
from lvlm_guard.bench.running import store
from lvlm_guard.bench.scoring.fitted_bias import FOLDS, find_fold
from lvlm_guard.bench.scoring.intervals import by_cluster, format_interval, interval
from lvlm_guard.bench.scoring.significance import Significance, significance
from lvlm_guard.files import write_whole
from lvlm_guard.tuning.remedies import FITTED_BIAS, CaseRow, RemedyTable, read_run

RESULTS = Path(__file__).resolve().parent / "results" / "remedies"
WRONG = 200
"""Wrong answers that are counted, the first ones."""

PROPOSED, RANDOM, THREE = "first proposed", "a random one", "any of three proposed"
MOST_CURES, BEST_NET = "the single one with most cures", "the single one with most cures less breaks"


@dataclass(frozen=True)
class Policy:
    """A rule from an item to how likely its answer is right afterwards."""

    name: str
    apply: Callable[[CaseRow], float]


def build_policies(tables: Sequence[RemedyTable], names: Sequence[str]) -> list[Policy]:
    """Return the rules; all but the last run one remedy for each item.

    Args:
        tables: For each fold, what was measured on the pictures of the others.
        names: All remedies.
    """
    single_rules = [
        (label, [find_single(table, net=net) for table in tables])
        for label, net in ((MOST_CURES, False), (BEST_NET, True))
    ]

    def propose(row: CaseRow, count: int) -> list[str]:
        return [proposal.name for proposal in tables[find_fold(row.cluster)].propose(row.level, row.margin, count)]

    def cures(row: CaseRow, chosen: Iterable[str]) -> float:
        return float(any(row.answers[name][1] for name in chosen))

    return [
        Policy(PROPOSED, lambda row: cures(row, propose(row, 1))),
        *(
            Policy(
                f"{label} ({', '.join(dict.fromkeys(chosen))})",
                lambda row, chosen=chosen: cures(row, [chosen[find_fold(row.cluster)]]),  # type: ignore[misc]
            )
            for label, chosen in single_rules
        ),
        Policy(RANDOM, lambda row: sum(row.answers[name][1] for name in names) / len(names)),
        Policy(f"control: {FITTED_BIAS}", lambda row: cures(row, [FITTED_BIAS])),
        Policy(THREE, lambda row: cures(row, propose(row, 3))),
    ]


def find_single(table: RemedyTable, *, net: bool) -> str:
    """Return the remedy that cured most answers; net of those that it broke, or not."""

    def score(name: str) -> tuple[int, str]:
        counts = table.measure(name, table.rows)
        return (counts.broken * net - counts.cured, name)

    return min(table.remedies, key=score)


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


def measure_policies(tables: Sequence[RemedyTable], everything: RemedyTable, wrong_limit: int) -> dict[str, Any]:
    """Return all figures."""
    names = list(everything.remedies)
    policies = build_policies(tables, names)
    wrong, right = select(everything.rows, names, wrong_limit)
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
            else f"{format_interval(lead.difference, lead.clusters, signed=True)}, {format_p(lead.p)}",
        }
    return {
        "suite": {**everything.suite, "wrong": len(wrong), "right": len(right)},
        "edges": list(everything.edges),
        "remedies": names,
        "policies": figures,
        "cells": describe_cells(everything),
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
    suite = figures["suite"]
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
                f"The first {suite['wrong']} wrong answers of plain generate to {suite['items']} items about {suite['pictures']} scenes, and the "
                f"{suite['right']} right ones among them; captions count as wrong where they name an absent object. Each is held out from the "
                f"table that proposes for it. Remedies: {', '.join(figures['remedies'])}, at their published values or as fitted. Every row "
                "but the last runs the model once more for an item; the last runs it three times and would need to know the truth. Intervals "
                "are 95 %, scenes resampled as wholes; leads are of the first row over the others, on wrong answers, p values uncorrected. One "
                "small model on drawn scenes."
            ),
            "",
            "| rule | cured | share of wrong | broken | share of right | lead of the first row |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## First proposals, on all scenes",
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
        description="Measures remedies on some pictures of a run and tries them on the others."
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, as scenes.py leaves it")
    parser.add_argument("--suite", default="scenes", help="the suite's name in the run")
    parser.add_argument("--wrong", type=int, default=WRONG, help="wrong answers that are counted")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the files to write, without their endings")
    arguments = parser.parse_args()
    record = store.read(arguments.run)
    clusters = list(dict.fromkeys(item.cluster for item in record.items[arguments.suite]))
    tables = [
        read_run(record, arguments.suite, {name for name in clusters if find_fold(name) != fold})
        for fold in range(FOLDS)
    ]
    figures = measure_policies(tables, read_run(record, arguments.suite, set(clusters)), arguments.wrong)
    command = f"python benchmarks/remedies.py --run {'/'.join(arguments.run.parts[-2:])} --wrong {arguments.wrong}"
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    write_whole(arguments.results.with_suffix(".json"), text.encode("utf-8"))
    write_whole(arguments.results.with_suffix(".md"), format_page(figures, command).encode("utf-8"))
    sys.stdout.write(f"{arguments.results.with_suffix('.md')}\n")


if __name__ == "__main__":
    main()
