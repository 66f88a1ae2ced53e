"""Prefixes run for a look, each as one row: of main, and of every branch whose images do not depend on the question."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effects import format_key
from lvlm_guard.call.asking import AskedCall, build_asked_call
from lvlm_guard.call.looks.dependence import describe_kind, list_edits
from lvlm_guard.call.looks.memory import Opening, PrefixMemory
from lvlm_guard.call.looks.preparation import LookPreparation, as_text, build_text_inputs, edits_text
from lvlm_guard.call.looks.rows import count_shared, cut_rows, list_rows, take_rows
from lvlm_guard.call.planning import PlannedCall, plan_call
from lvlm_guard.call.prompt_preparation import PromptPreparation
from lvlm_guard.forward import PreparedDecode, capture_decode
from lvlm_guard.forward.interventions import vision
from lvlm_guard.forward.prefixes import (
    Prefix,
    capture_positions,
    continue_prefix,
    leave_out_images,
    run_prefix,
    shorten_prefix,
)
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN

ONE_ROW = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "max_new_tokens": 1}
"""Settings under which a prompt is prepared as one row."""


def build_row_request(request: Request, opening: Opening, row: int = 0) -> Request:
    """Return one row of a request on a look as a request of its own, with the pictures of the look."""
    inputs = {**opening.inputs, **take_rows({**request.inputs, "attention_mask": request.attention_mask}, [row])}
    return Request(inputs, dict(ONE_ROW), request.config, request.processor, opening.pictures, request.defaults)


def build_row_call(call: AskedCall, request: Request) -> AskedCall:
    """Return a call on a look like another one, of one row."""
    return build_asked_call(call.model, call.generate, request, call.strategies, call.executor, None, LookPreparation)


def build_prefixes(planned: PlannedCall, memory: PrefixMemory, keys: Iterable[Hashable]) -> int:
    """Find the prefixes of main and of branches that a call lacks, planned for its first row; return how many were run.

    They are taken from an answered call where they can be, and else run.

    Raises:
        ModelRefused: The model cannot go on from a prefix.
    """
    row = plan_call(build_row_call(planned.call, build_row_request(planned.request, memory.opening)))
    builder = _Builder(row, memory.opening)
    due = [key for key in keys if key == MAIN or key in row.plan.branches]
    from_answer = _take_prefixes(row, builder, memory, due)
    built = _run_prefixes(row, builder, [key for key in due if key not in from_answer])
    for key, prefix in (from_answer | built).items():
        memory.keep(key, describe_kind(row.plan, key), prefix)
    _note_effects(row, memory, built)
    return sum(isinstance(prefix, Prefix) for prefix in built.values())


def _run_prefixes(row: PlannedCall, builder: _Builder, keys: Sequence[Hashable]) -> dict[Hashable, Prefix | str]:
    if not keys:
        return {}
    with row.interventions.installed(row.main, row.call.gen):
        builder.prepare()
        return {key: builder.build(key) for key in keys}


def _take_prefixes(
    row: PlannedCall, builder: _Builder, memory: PrefixMemory, keys: Sequence[Hashable]
) -> dict[Hashable, Prefix | str]:
    """Return the prefixes that an answered call left, and note of each whether it did."""
    answered = memory.answered
    prefixes: dict[Hashable, Prefix | str] = {}
    for key in keys if answered is not None else ():
        assert answered is not None
        ids = builder.find_ids(key)
        prefix = ids if isinstance(ids, str) else answered.take(key, describe_kind(row.plan, key), ids)
        answered.not_taken[key] = prefix if isinstance(prefix, str) else ""
        if not isinstance(prefix, str):
            prefixes[key] = prefix
            edits = {(name, number) for name, number, _ in list_edits(row.plan, key)}
            memory.effects |= edits & answered.answered.effects
    return prefixes


def advance_prefixes(
    planned: PlannedCall, memory: PrefixMemory, prefixes: Mapping[Hashable, Prefix]
) -> dict[Hashable, Prefix]:
    """Run prefixes on up to the last token of the prompts of a call of one row; what they share with the prompts is not run again."""
    row = plan_call(build_row_call(planned.call, build_row_request(planned.request, memory.opening)))
    interventions = dataclasses.replace(row.interventions, vision_edits=())
    with interventions.installed(row.main, row.call.gen):
        return {key: _advance(row, key, prefix) for key, prefix in prefixes.items()}


def _advance(row: PlannedCall, key: Hashable, prefix: Prefix) -> Prefix:
    """Return a prefix run on, or as it is where the prompt has too little in common with it."""
    branch, gen, inside = row.plan.branches.get(key), row.call.gen, row.interventions.inside
    if key != MAIN and branch is None:
        return prefix
    inputs = build_text_inputs(row.request, branch, prefix)
    ids = inputs["input_ids"][0].tolist()
    start = shorten_prefix(prefix, min(count_shared(ids, prefix.ids), len(ids) - 1))
    if start is None or len(start.ids) == len(ids) - 1:
        return prefix if start is None else start
    for name, tensor in start.rows.items():
        gen.rows.put(name, tensor)
    inputs = {**inputs, **cut_rows(inputs, len(ids) - 1)}
    prepared = continue_prefix(capture_positions(row.call.generate, inputs, ONE_ROW), start)
    advanced = run_prefix(prepared, key, gen, None if inside.is_empty else inside)
    base = prefix if prefix.base is None else prefix.base
    return dataclasses.replace(advanced, rows={**start.rows, **advanced.rows}, base=base)


def _note_effects(row: PlannedCall, memory: PrefixMemory, keys: Iterable[Hashable]) -> None:
    for key in keys:
        for name, number, edit in list_edits(row.plan, key):
            if row.interventions.had_effect([edit]):
                memory.effects.add((name, number))


class _Builder:
    """Runs the prefixes of one row, while its interventions are installed.

    Args:
        row: The planned call of the row.
        opening: How its prompt begins.
    """

    def __init__(self, row: PlannedCall, opening: Opening) -> None:
        self._row = row
        self._gen = row.call.gen
        inputs = {**row.request.inputs, **cut_rows(row.request.inputs, len(opening.ids))}
        request = row.request
        self._request = Request(
            inputs, dict(ONE_ROW), request.config, request.processor, request.pictures, request.defaults
        )
        self._preparation = PromptPreparation(row.call.generate, self._request, dict(ONE_ROW), self._gen)
        self._encoded: Mapping[str, Any] | None = None
        self._main: PreparedDecode | None = None

    def prepare(self) -> None:
        """Prepare main's prefix, and encode its images; branches share them as they are without main's edits."""
        with vision.encoding(self._gen, MAIN):
            self._main = self._preparation.prepare_main()
        plain = self._preparation.prepare_main() if self._row.interventions.vision_edits else self._main
        self._encoded = self._preparation.encode_images(plain)

    def build(self, key: Hashable) -> Prefix | str:
        """Run the prefix of main or of a branch; why there is none where it shares nothing with the whole prompt."""
        inside = self._row.interventions.inside
        prepared = self._main if key == MAIN else self._prepare_branch(key)
        if not isinstance(prepared, PreparedDecode):
            return prepared or "nothing of it comes before the question"
        return run_prefix(prepared, key, self._gen, None if inside.is_empty else inside)

    def find_ids(self, key: Hashable) -> tuple[int, ...] | str:
        """Return the ids of the prefix of main or of a branch, or why it has none."""
        branch = self._row.plan.branches.get(key)
        if branch is None or not edits_text(branch):
            return tuple(self._request.input_ids[0].tolist())
        if branch.image == "masked":
            return f"branch {format_key(key)} masks images and edits the prompt"
        inputs = build_branch_inputs(self._request, as_text(branch), None)
        length = self._count_shared(inputs, key)
        if not length or self._cuts_image(inputs["input_ids"], length):
            return f"branch {format_key(key)} edits the prompt before its images, or at its end"
        return tuple(inputs["input_ids"][0, :length].tolist())

    def _prepare_branch(self, key: Hashable) -> PreparedDecode | str:
        branch = self._row.plan.branches[key]
        inputs = build_branch_inputs(self._request, branch, self._encoded)
        if edits_text(branch):
            ids = self.find_ids(key)
            if isinstance(ids, str):
                return ids
            inputs = {**inputs, **cut_rows(inputs, len(ids))}
        with vision.encoding(self._gen, key):
            return capture_decode(self._row.call.generate, inputs, ONE_ROW)

    def _count_shared(self, inputs: Mapping[str, Any], key: Hashable) -> int:
        """Return how many ids the branch of the prefix has in common with that of the whole prompt."""
        branch, request = self._row.plan.branches[key], self._row.request
        text = leave_out_images(inputs)
        whole_inputs = build_branch_inputs(request, as_text(branch), None)
        shared = count_shared(list_rows(text)[0], list_rows(whole_inputs)[0])
        return min(shared, int(whole_inputs["attention_mask"].sum()) - 1)

    def _cuts_image(self, ids: Tensor, length: int) -> bool:
        token = anatomy.image_token_id(self._request.config)
        return token is not None and bool((ids[:, length:] == token).any())
