"""Former names of the benchmark rooms go on working, with a warning that names the new one."""

from __future__ import annotations

import importlib

import pytest

ROOM = "lvlm_guard.bench"
RENAMED = [
    ("items", "Said", "AnsweredItem"),
    ("running.manifest", "Plan", "RunPlan"),
    ("running.manifest", "Chosen", "SuiteChoice"),
    ("running.manifest", "told_model", "describe_model"),
    ("running.systems", "line_up", "build_systems"),
    ("running.systems", "named_stacks", "read_stacks"),
    ("running.choosing", "chosen", "choose_suites"),
    ("running.choosing", "made_suite", "build_suite"),
    ("running.choosing", "checked_parser", "check_parser"),
    ("running.choosing", "measures", "load_measures"),
    ("running.choosing", "arguments_of", "read_arguments"),
    ("running.batches", "batches", "build_batches"),
    ("running.batches", "limited", "limit_items"),
    ("running.store", "opened", "open_run"),
    ("reporting.results", "compared", "compare_measure"),
    ("scoring.significance", "adjusted", "correct_p_values"),
    ("scoring.significance", "changes", "count_changes"),
]


@pytest.mark.parametrize(("room", "old", "new"), RENAMED, ids=[old for _, old, _ in RENAMED])
def test_a_former_name_is_the_new_one_and_warns(room, old, new):
    module = importlib.import_module(f"{ROOM}.{room}")
    with pytest.warns(DeprecationWarning, match=f"use {module.__name__}.{new}"):
        former = getattr(module, old)
    assert former is getattr(module, new)
