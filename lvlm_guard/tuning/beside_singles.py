"""What a tuned stack is worth beside each strategy alone at its published values, on the same held-out items at the same cost limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.reporting.level_verdicts import CAPTIONS
from lvlm_guard.bench.scoring.significance import Significance
from lvlm_guard.tuning.judging import Single

SURE = 0.05
"""Below this a corrected p value counts."""

WARNING = "WARNING"


@dataclass(frozen=True)
class Standing:
    """The single strategies within the budget, by what the tuned stack is beside them.

    Args:
        beaten: It is better somewhere and worse nowhere.
        alike: No difference is beyond chance.
        better: They are better than it somewhere.
        leads: The tuned stack minus each of them, by measure.
    """

    beaten: Sequence[str]
    alike: Sequence[str]
    better: Sequence[str]
    leads: Mapping[str, Mapping[str, float]]

    @property
    def warnings(self) -> list[str]:
        """What whoever takes the stack must know, a sentence each."""
        lines = []
        if self.better:
            lines.append(
                f"{WARNING}: better than it somewhere, alone at published values (and the stack minus them): "
                f"{self._write(self.better)}."
            )
        if self.alike:
            lines.append(
                f"{WARNING}: not told from it by these items, alone at published values (and the stack minus them): "
                f"{self._write(self.alike)}."
            )
        return lines

    def _write(self, names: Sequence[str]) -> str:
        """Return strategies with what the stack is above or below them, part by part."""
        return ", ".join(
            f"{name} ({', '.join(f'{part} {value:+.3f}' for part, value in self.leads[name].items())})"
            for name in names
        )

    def describe(self) -> str:
        """Return in a sentence how it stands; empty where no single strategy was judged."""
        total = len(self.beaten) + len(self.alike) + len(self.better)
        if not total:
            return ""
        return (
            f"Of the {total} strategies that alone are within the budget at their published values, it is better than {len(self.beaten)}, "
            f"not told from {len(self.alike)}, and worse somewhere than {len(self.better)}."
        )


def place(singles: Iterable[Single]) -> Standing:
    """Return how the tuned stack stands beside single strategies, by differences that Holm's correction leaves."""
    beaten: list[str] = []
    alike: list[str] = []
    better: list[str] = []
    leads: dict[str, dict[str, float]] = {}
    for single in singles:
        if not single.leads:
            continue
        signs = {_find_sign(part, test) for part, test in single.leads.items()} - {0}
        (better if -1 in signs else beaten if signs else alike).append(single.name)
        leads[single.name] = {part: test.difference.value for part, test in single.leads.items()}
    return Standing(beaten, alike, better, leads)


def _find_sign(part: str, test: Significance) -> int:
    """Return 1 where the tuned stack is better, -1 where it is worse, 0 where that may be chance."""
    if test.adjusted_p is None or not test.adjusted_p < SURE:
        return 0
    is_more = test.difference.value > 0
    return 1 if is_more is (part != CAPTIONS) else -1
