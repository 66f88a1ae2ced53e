"""Named stacks to begin with: published settings, by what they cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A stack under a name.

    Args:
        strategies: Names of strategies, each at its published values.
        summary: What it runs beside plain generate.
    """

    strategies: tuple[str, ...]
    summary: str


PRESETS = {
    "light": Preset(("m3id",), "one branch without the image: a short prompt, and a row more in each step"),
    "balanced": Preset(("vcd",), "one branch with a noised image: a second prompt, and a row more in each step"),
    "thorough": Preset(
        ("vcd", "pai", "revise"),
        "branches with a noised image and without one, more attention to the image, and a question about each claim of a description",
    ),
}
"""No preset was found by measurement: `lvlm-guard tune` finds a stack for a model and what it is asked."""
