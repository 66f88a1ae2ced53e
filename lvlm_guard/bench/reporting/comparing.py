"""Two runs of the same items, system by system: other weights, another version, another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.reporting.answers import read_suite_answers
from lvlm_guard.bench.reporting.comparable import select_shared
from lvlm_guard.bench.reporting.edited import describe_other_pictures
from lvlm_guard.bench.reporting.results import compare_measure
from lvlm_guard.bench.running.choosing import build_suite, check_parser, load_measures
from lvlm_guard.bench.running.edits import find_changed_items, list_first
from lvlm_guard.bench.running.manifest import describe_model
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.significance import Changes, Significance, correct_p_values, count_changes
from lvlm_guard.errors import InputError


@dataclass(frozen=True)
class Pair:
    """One measure of one system in two runs.

    Args:
        suite: The suite's name in the first run.
        system: Who answered.
        measure: Name of the measure.
        level: Its level.
        higher_is_better: None where neither is.
        before: The score in the first run.
        after: The score in the second.
        test: Second minus first, and its test; Holm's correction is over the systems.
    """

    suite: str
    system: str
    measure: str
    level: str
    higher_is_better: bool | None
    before: float
    after: float
    test: Significance


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Args:
        models: The model of either run and its architecture.
        changed: Answers that differ, by suite and system.
        pairs: One per suite, measure and system.
        left_out: What could not be compared, and why, one line each.
        warnings: Where the pictures differ, or nothing tells whether they do.
    """

    models: tuple[str, str]
    changed: Mapping[str, Mapping[str, Changes]]
    pairs: Sequence[Pair]
    left_out: Sequence[str]
    warnings: Sequence[str] = ()


def compare(before: Record, after: Record) -> Comparison:
    """Compare the suites and systems that two runs have in common.

    Raises:
        InputError: They have none in common, or not the same items.
    """
    shared = [name for name in before.suites if name in after.suites]
    if not shared:
        raise InputError(f"The runs have no suite in common: {list(before.suites)} and {list(after.suites)}.")
    changed: dict[str, dict[str, Changes]] = {}
    pairs: list[Pair] = []
    left_out = [f"{name}: only in one of the runs" for name in sorted({*before.suites} ^ {*after.suites})]
    for name in shared:
        _check_items(before, after, name)
        answers = _answers(before, after, name, left_out)
        changed[name] = {
            system: count_changes([answer.text for answer in old], [answer.text for answer in new])
            for system, (old, new) in answers.items()
        }
        description = before.manifest["suites"][name]
        suite = build_suite(description["name"], description["arguments"])
        for measure in load_measures(suite, check_parser(suite, description["parser"]), before.data):
            pairs += _pairs(name, measure, answers)
    models = (describe_model(before.manifest), describe_model(after.manifest))
    warnings = [line for name in shared if (line := describe_other_pictures(before, after, name)) is not None]
    return Comparison(models, changed, pairs, left_out, warnings)


def _check_items(before: Record, after: Record, suite: str) -> None:
    old, new = before.manifest["suites"][suite], after.manifest["suites"][suite]
    changed = find_changed_items(before.items[suite], after.items[suite])
    for name, what in (("ids_sha256", "items"), ("prompts_sha256", "prompts"), ("items_sha256", "truths")):
        if old[name] != new[name] and (changed or name == "ids_sha256"):
            counts = (
                f"{len(changed)} of {old['items']} differ: {list_first(changed)}" if changed else "more in the second"
            )
            raise InputError(
                f"{suite}: the two runs have other {what} ({old['items']} and {new['items']} items; {counts}), so their answers "
                "cannot be compared one by one. Run both with the same data, arguments and --limit."
            )


def _answers(
    before: Record, after: Record, suite: str, left_out: list[str]
) -> dict[str, tuple[list[AnsweredItem], list[AnsweredItem]]]:
    """Return the answers of systems that finished in both runs, to the items that neither skipped.

    Add a line to `left_out` for each other one, and where items were skipped.
    """
    answers = {}
    read = [read_suite_answers(run, suite).by_system for run in (before, after)]
    for system in dict.fromkeys((*read[0], *read[1])):
        both = [list(by_system.get(system, ())) for by_system in read]
        skipped = [len(run.read_skipped(system, suite).ids) for run in (before, after)]
        total = len(before.items[suite])
        if all(answered and len(answered) + gap == total for answered, gap in zip(both, skipped, strict=True)):
            answers[system] = select_shared(*(_renew(answered, after.items[suite]) for answered in both))
            if any(skipped):
                left_out.append(
                    f"{suite}, {system}: {max(skipped)} of {total} items without a picture, which it skipped"
                )
        else:
            counts = " and ".join(str(len(answers)) for answers in both)
            left_out.append(f"{suite}, {system}: {counts} of {len(before.items[suite])} answers")
    return answers


def _renew(answers: Sequence[AnsweredItem], items: Sequence[Item]) -> list[AnsweredItem]:
    """Return answers with the items of the second run, whose habits may have been estimated otherwise."""
    by_id = {item.id: item for item in items}
    return [replace(answered, item=by_id[answered.item.id]) for answered in answers]


def _pairs(
    suite: str, measure: Measure, answers: Mapping[str, tuple[Sequence[AnsweredItem], Sequence[AnsweredItem]]]
) -> list[Pair]:
    tests = {system: compare_measure(measure, old, new) for system, (old, new) in answers.items()}
    corrected = correct_p_values({system: test for system, test in tests.items() if test is not None})
    return [
        Pair(
            suite=suite,
            system=system,
            measure=measure.name,
            level=measure.level,
            higher_is_better=measure.higher_is_better,
            before=measure.value(answers[system][0]),
            after=measure.value(answers[system][1]),
            test=test,
        )
        for system, test in corrected.items()
    ]
