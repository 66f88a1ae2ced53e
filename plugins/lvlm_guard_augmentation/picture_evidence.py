"""What a picture shows by its own tokens, where a reader of them is installed and fitted."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lvlm_guard import Generation, HiddenEdit, InputError

READER = "lvlm_guard_evidence.reading"
"""Offers `evidence_of` and `remember_tokens`; families of strategies do not import each other, so it is found by its name."""


class ObjectEvidence(Protocol):
    """What one picture shows, as log-odds in nats; 0 is no opinion, None that it cannot be told."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that are known, lower case, singular."""
        ...

    def existence(self, name: str) -> float | None:
        """Return log-odds that such an object is there."""
        ...

    def attribute(self, name: str, value: str) -> float | None:
        """Return log-odds that the object has this value."""
        ...

    def relation(self, subject: str, direction: str, reference: str) -> float | None:
        """Return log-odds that the subject is `left`, `right`, `above` or `below`."""
        ...


def remember_tokens(gen: Generation, artefact: Path) -> HiddenEdit:
    """Return the edit that remembers image tokens in the prefill and changes nothing."""
    edit: HiddenEdit = _find_reader().remember_tokens(gen, artefact)
    return edit


def read_evidence(gen: Generation, artefact: Path | None) -> Sequence[ObjectEvidence | None]:
    """Return what the picture of each request shows; None for each without an artefact."""
    if artefact is None:
        return [None] * len(gen.output_ids)
    evidence: Sequence[ObjectEvidence | None] = _find_reader().evidence_of(gen, artefact)
    return evidence


def _find_reader() -> Any:
    try:
        return importlib.import_module(READER)
    except ImportError as error:
        raise InputError(
            f"'revise' needs {READER} for its evidence: install it, or leave evidence out. {error}"
        ) from error
