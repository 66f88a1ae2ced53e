"""What pages are made with: templates that escape, and figures as tables show them. Pages need no network, no other file, no script."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

from lvlm_guard.bench.reporting import page_templates

SMALL, LARGE = 1e-3, 1e6
"""Figures nearer to 0, and from there on, are written with an exponent."""


def environment() -> Environment:
    """Return the environment of the templates of a diagnosis."""
    return page_templates.environment("lvlm_guard.diagnosis.report")


def write_number(value: Any) -> str:
    """Return a figure as a table shows it."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        text = f"{value:.3f}" if size == 0 or SMALL <= size < LARGE else f"{value:.{1 if size < SMALL else 5}e}"
        return text.replace("-", "\u2212")
    return str(value)
