"""Read the items of a plan before a model is loaded, and find out whether a run of them could finish."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.batches import limit_items
from lvlm_guard.bench.running.edits import digest_files, digest_pictures
from lvlm_guard.bench.running.kept_items import check_item
from lvlm_guard.bench.running.manifest import Gathered, RunPlan
from lvlm_guard.bench.running.picture_check import LeftOut, find_faults, refuse
from lvlm_guard.bench.running.stored_manifest import REFUSE, SKIP
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import GuardWarning, InputError, nearest
from lvlm_guard.files import exists, is_folder


def gather(plan: RunPlan) -> Gathered:
    """Read the items of a plan and look at their pictures; no model is needed, so this comes before one is loaded.

    Raises:
        InputError: The plan or its data cannot be used, or pictures are missing and may not be.
    """
    _check_plan(plan)
    loaded = {name: chosen.suite.load(plan.data) for name, chosen in plan.suites.items()}
    items, left_out, pictures = {}, {}, {}
    for name, content in loaded.items():
        limited_items = _limit(name, content.items, plan.limit)
        _check_items(name, limited_items)
        suite = plan.suites[name].suite
        items[name], left_out[name] = _drop_faulty(name, suite, plan, limited_items)
        pictures[name] = digest_pictures(suite, plan.data, items[name])
    problems = {name: content.problems for name, content in loaded.items()}
    files = {name: digest_files(choice.suite, plan.data) for name, choice in plan.suites.items()}
    return Gathered(items, problems, left_out, pictures, files)


def _check_plan(plan: RunPlan) -> None:
    if plan.batch < 1 or (plan.limit is not None and plan.limit < 1):
        raise InputError(f"batch and limit must be at least 1, got {plan.batch} and {plan.limit}.")
    if plan.missing_pictures not in (REFUSE, SKIP):
        hint = nearest(plan.missing_pictures, (REFUSE, SKIP))
        raise InputError(f"--missing-pictures {plan.missing_pictures} is not possible.{hint}")
    if plan.data is not None and not is_folder(plan.data):
        fault = "is a file, not the folder that holds the suites' files" if exists(plan.data) else "does not exist"
        raise InputError(f"--data: {plan.data} {fault}. Name a folder.")


def _limit(name: str, items: Sequence[Item], limit: int | None) -> list[Item]:
    limited = limit_items(items, limit)
    if limit is not None and len(limited) > limit:
        warnings.warn(
            f"{name}: --limit {limit} is less than the {len(limited)} items about {limited[0].cluster}, which stay "
            f"together; {len(limited)} are taken.",
            GuardWarning,
            stacklevel=3,
        )
    return limited


def _check_items(name: str, items: Sequence[Item]) -> None:
    if not items:
        raise InputError(f"{name} has no items.")
    if len({item.id for item in items}) < len(items):
        raise InputError(f"{name} has items of the same id, so their answers could not be distinguished.")
    for item in items:
        check_item(name, item)


def _drop_faulty(name: str, suite: Suite, plan: RunPlan, items: Sequence[Item]) -> tuple[list[Item], LeftOut]:
    left_out = find_faults(suite, plan.data, items)
    usable = [item for item in items if item.image not in left_out.faults]
    if left_out.faults and (plan.missing_pictures == REFUSE or not usable):
        raise refuse(name, left_out, len({item.image for item in items if item.image is not None}))
    return usable, left_out
