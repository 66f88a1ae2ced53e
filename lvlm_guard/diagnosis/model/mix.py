"""Which questions known items ask: what components do on average depends on it, so batteries are weighed to ask alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lvlm_guard.errors import InputError, quote

NAMED = 4
"""Kinds that an error names at most."""
LEAST_EXPECTED = 2
"""Items of a kind that must be expected before it is missed; fewer may be absent by chance."""


class KnownQuestion(Protocol):
    """A known item, as far as a mix looks at it."""

    @property
    def kind(self) -> str:
        """The name of its kind."""

    @property
    def answer(self) -> str:
        """Its true answer."""


@dataclass(frozen=True)
class QuestionMix:
    """Shares of kinds of questions, and of answers within a kind.

    Args:
        kinds: The share of each kind; together 1.
        answers: By kind, the share within it of each answer that is common enough to be in every battery.
    """

    kinds: Mapping[str, float]
    answers: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, items: Sequence[KnownQuestion], battery: int) -> QuestionMix:
        """Return the mix of items that are dealt into batteries of some size."""
        kinds = Counter(item.kind for item in items)
        pairs = Counter((item.kind, item.answer) for item in items)
        answers: dict[str, dict[str, float]] = {kind: {} for kind in sorted(kinds)}
        for (kind, answer), count in sorted(pairs.items()):
            if count * battery >= len(items):
                answers[kind][answer] = count / kinds[kind]
        return cls({kind: count / len(items) for kind, count in sorted(kinds.items())}, answers)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuestionMix:
        """Return what `to_dict` returned."""
        return cls(dict(values["kinds"]), {kind: dict(answers) for kind, answers in values["answers"].items()})

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"kinds": dict(self.kinds), "answers": {kind: dict(shares) for kind, shares in self.answers.items()}}

    def stratum(self, item: KnownQuestion) -> tuple[str, str]:
        """Return the kind of an item, with its answer where that is a common one, and else an empty one."""
        return item.kind, item.answer if item.answer in self.answers.get(item.kind, {}) else ""

    def weigh(self, items: Sequence[KnownQuestion]) -> list[float]:
        """Return what each item counts, so that together they ask as this mix does; the mean is 1.

        Kinds and answers that no item has leave their share to the others; an item of an unknown kind counts 0.
        """
        counts = Counter(self.stratum(item) for item in items)
        shares = {stratum: self._find_share(stratum, list(counts)) for stratum in counts}
        weights = [shares[self.stratum(item)] / counts[self.stratum(item)] for item in items]
        total = sum(weights)
        return [weight * len(items) / total if total else 0.0 for weight in weights]

    def _find_share(self, stratum: tuple[str, str], strata: Sequence[tuple[str, str]]) -> float:
        kind = stratum[0]
        within = sum(self._share_within(each) for each in strata if each[0] == kind)
        return self.kinds.get(kind, 0.0) * self._share_within(stratum) / within if within else 0.0

    def _share_within(self, stratum: tuple[str, str]) -> float:
        kind, answer = stratum
        common = self.answers.get(kind, {})
        return common[answer] if answer else max(0.0, 1.0 - sum(common.values()))

    def check(self, items: Sequence[KnownQuestion], source: str) -> None:
        """Refuse items that cannot be weighed to ask as this mix does.

        Args:
            items: The items.
            source: What this mix is of, in words.

        Raises:
            InputError: Some are of kinds that this mix does not have, or a kind is missing that should be there at least twice.
        """
        kinds = {item.kind for item in items}
        if unknown := sorted(kinds - set(self.kinds)):
            raise InputError(f"Some known items are {_name(unknown)}, which {source} has none of. {_ADVICE}")
        missing = [
            kind for kind, share in self.kinds.items() if kind not in kinds and share * len(items) >= LEAST_EXPECTED
        ]
        if missing:
            raise InputError(f"No known item is {_name(missing)}, as some of {source} are. {_ADVICE}")


_ADVICE = (
    "Components are compared on questions of the same kinds. Pass items of the suite that the profile was measured on, or measure a "
    "profile on this one: lvlm-guard diagnose profile."
)


def _name(kinds: Sequence[str]) -> str:
    named = ", ".join(quote(kind) for kind in kinds[:NAMED])
    return f"of kind {named}{' and others' if len(kinds) > NAMED else ''}"
