"""Of tests with many cases the suite runs a sample; the slow tests run all of them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SAMPLED = {
    "core/test_gold.py::test_every_step_equals_a_recompute_from_scratch": "llava-6|qwen2_vl-6|noised|gemma3-24-blind|idefics3-6-masked",
    "core/test_batches.py::test_a_ragged_batch_equals_its_rows": "llava-|qwen2_vl|noised|gemma3-blind|idefics3-masked",
    "core/test_batches.py::test_beams_of_a_ragged_batch_are_those_of_its_rows": "llava-|qwen2_vl-blind|noised|gemma3-blind",
    "core/test_compiled.py::test_branches_leave_a_model_compiled": "forward|layers",
    "core/test_compiled.py::test_work_inside_the_layers_is_right_on_a_model_that_ran_compiled": "forward",
    "core/test_conversations.py::test_every_turn_is_answered_as_the_whole_conversation_is": "llava|vcd|vdd",
    "core/test_devices.py::test_a_spread_model_is_fitted_alike": "vti",
    "core/test_inputs_and_finish.py::test_main_runs_on_the_edited_prompt": "llava|tokens",
    "core/test_inside.py::test_attention_edits": "llava|mask|add-image",
    "core/test_inside.py::test_hidden_edits": "llava|residual|mlp-image-gemma3",
    "cli/test_tables.py::test_a_run_its_report_and_a_demo_cut_nothing": "40|200",
    "diagnosis/test_plants.py::test_a_diagnosis_names_what_was_planted": "swapped|projector|head_copies|push|yes_bias",
    "diagnosis/test_report_in_a_browser.py::test_nothing_sticks_out_and_all_can_be_read": "answer-001-400-light|index-400-dark",
    "kernels/test_extremes.py::test_divergences_between_rows_at_the_ends_of_their_dtype": "torch|both|dtype[07]",
    "kernels/test_extremes.py::test_draws_from_rows_at_the_ends_of_their_dtype": "torch|both|dtype[07]",
    "strategies/search/test_opera.py::test_opera_is_its_twin": "llava|gemma3-narrow|qwen2_vl-penalty",
    "strategies/test_sequence_contract.py::test_the_contract_turns_red_for_what_is_broken": "none|mixes|spills",
    "strategies/test_stacks_attention.py::test_vcd_and_pai_are_the_sum_written_by_hand": "llava-vcd|qwen2_vl-pai",
    "strategies/test_stacks_branches.py::test_avisc_and_deco": "0-llava|1-qwen2_vl",
    "strategies/test_stacks_layers.py::test_vcd_and_dola": "False-llava|True-gemma3",
    "verification/test_verify.py::test_a_faulty_strategy_is_red": "saboteur|batchwise|nothing",
}  # fmt: skip
"""Tests with a pattern for the names of the cases that stay."""

LONGEST_OF_THE_CONTRACT = (
    "test_no_token_waits_for_the_device",
    "test_a_model_on_two_devices_says_the_same",
    "test_two_threads_get_their_own_answers",
    "test_a_forbidden_token_stays_forbidden",
    "test_neutral_is_plain_and_refuses_nothing",
)
ONE_OF_EACH_KIND = ("TestVCD", "TestPAI", "TestDoLa", "TestVSV", "TestRevise", "TestPatchEvidence")
"""One that adds a branch, edits attention, reads layers, edits states, revises, is fitted: these run the whole contract."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the cases that are left out, and refuse a pattern that finds nothing to leave or to keep."""
    for item in items:
        if _is_left_out(item):
            item.add_marker(pytest.mark.slow)
    if not any("::" in argument for argument in config.args):
        _check_patterns(items)


def _name(item: pytest.Item) -> str:
    return f"{os.path.relpath(item.path, HERE)}::{getattr(item, 'originalname', item.name)}"


def _is_left_out(item: pytest.Item) -> bool:
    pattern = SAMPLED.get(_name(item))
    if pattern is not None:
        return re.search(pattern, item.callspec.id) is None  # type: ignore[attr-defined]
    of_strategies = item.path.is_relative_to(HERE / "strategies") and getattr(item, "cls", None) is not None
    return (
        of_strategies
        and item.cls.__name__ not in ONE_OF_EACH_KIND  # type: ignore[attr-defined]
        and item.name.split("[")[0] in LONGEST_OF_THE_CONTRACT
    )


def _check_patterns(items: list[pytest.Item]) -> None:
    cases = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            cases[_name(item)].append(item.callspec.id)
    files = {name.partition("::")[0] for name in cases}
    for name, pattern in SAMPLED.items():
        kept = {bool(re.search(pattern, case)) for case in cases[name]}
        if name.partition("::")[0] in files and kept != {True, False}:
            raise pytest.UsageError(f"tests/conftest.py: {pattern!r} keeps all or none of the cases of {name}.")
