"""The report of the last call of each guard, by thread or task."""

from __future__ import annotations

from contextvars import ContextVar
from weakref import WeakKeyDictionary

from lvlm_guard.call.report import Report

_reports: ContextVar[WeakKeyDictionary[object, Report] | None] = ContextVar("lvlm_guard_reports", default=None)


def find_report(guard: object) -> Report | None:
    """Return the report of a guard's last call in this context, or None."""
    reports = _reports.get()
    return None if reports is None else reports.get(guard)


def keep_report(guard: object, report: Report | None) -> None:
    """Keep a report for as long as its guard lives; None forgets it. Contexts copied from this one keep theirs."""
    reports = WeakKeyDictionary(_reports.get() or {})
    reports.pop(guard, None)
    if report is not None:
        reports[guard] = report
    _reports.set(reports)
