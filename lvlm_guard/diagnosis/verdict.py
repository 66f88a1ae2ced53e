"""What a diagnosis says, of a model or of an answer: one value, one JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.errors import InputError, quote

Level = Literal["data", "model", "inference", "none", "unknown"]
"""Where surveys of hallucination in vision-language models put a cause: what the model learnt, what it is, how it is run."""
Stage = Literal[
    "input", "tower", "projector", "attention", "decoder", "output", "decoding", "prior", "answer", "none", "unknown"
]
"""The part of the way from the picture to the token that is to blame."""
LEVELS: Mapping[Stage, Level] = {
    "input": "inference",
    "tower": "model",
    "projector": "model",
    "attention": "model",
    "decoder": "model",
    "output": "model",
    "decoding": "inference",
    "prior": "data",
    "answer": "inference",
    "none": "none",
    "unknown": "unknown",
}
SCHEMA = Path(__file__).parent / "verdict.schema.json"


@dataclass(frozen=True)
class Culprit:
    """A component, and how far it departs from what is expected of it.

    Args:
        component: Its name, such as `pixels`, `tower`, `projector`, `image_mass`, `head`, `mlp`; `none` and `unknown` where no
            component is named.
        stage: The part of the way from the picture to the token.
        layer: Layer, counted from 0, of the tower or the decoder; None where the component is in no layer.
        head: Head, counted from 0; None where it is no head.
        score: How far it departs, in the units of `threshold`; None where nothing was measured.
        threshold: From where on it is abnormal; None where nothing was measured.
    """

    component: str
    stage: Stage
    layer: int | None = None
    head: int | None = None
    score: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class ProfileFacts:
    """Which profile of a sound model a diagnosis compared with.

    Args:
        sha: SHA-256 of its tensors, as its file holds it.
        items: Known items it was measured on.
        batteries: Batteries they were grouped into.
    """

    sha: str
    items: int
    batteries: int


@dataclass(frozen=True)
class Diagnosis:
    """A verdict with the figures behind it.

    Args:
        culprit: What is to blame, or `none`, or `unknown`.
        runner_up: The next candidate, or None.
        evidence: Figures by name; plain values that JSON holds.
        profile: The profile compared with, or None.
        partial: What could not be looked at, a sentence each.
        span: First and last character, the latter excluded, of the words that are judged; None for a whole model.
    """

    culprit: Culprit
    runner_up: Culprit | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    profile: ProfileFacts | None = None
    partial: tuple[str, ...] = ()
    span: tuple[int, int] | None = None

    @property
    def level(self) -> Level:
        """Where surveys put a cause at this stage."""
        return LEVELS[self.culprit.stage]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as the published schema has it; the same diagnosis gives the same values in the same order."""
        runner_up = None if self.runner_up is None else asdict(self.runner_up)
        return {
            "span": None if self.span is None else list(self.span),
            "level": self.level,
            "verdict": {**asdict(self.culprit), "runner_up": runner_up},
            "evidence": dict(self.evidence),
            "profile": None if self.profile is None else asdict(self.profile),
            "partial": list(self.partial),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; NaN and infinities are refused.

        Raises:
            InputError: The evidence holds what JSON does not.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise InputError(f"The evidence of a diagnosis holds what JSON does not: {error}.") from error

    @classmethod
    def from_dict(cls, values: Any) -> Diagnosis:
        """Return the diagnosis that `to_dict` gave.

        Raises:
            InputError: It breaks the schema, or its level is not that of its stage.
        """
        checked = _schema_model().validate_python(values)
        verdict = dict(checked["verdict"])
        second = verdict.pop("runner_up")
        profile, span = checked["profile"], checked["span"]
        diagnosis = cls(
            Culprit(**verdict),
            None if second is None else Culprit(**second),
            checked["evidence"],
            None if profile is None else ProfileFacts(**profile),
            tuple(checked["partial"]),
            None if span is None else (span[0], span[1]),
        )
        if diagnosis.level != checked["level"]:
            raise InputError(
                f"A diagnosis at stage {diagnosis.culprit.stage} is of level {diagnosis.level}, not {quote(checked['level'])}."
            )
        return diagnosis


class _Validator:
    """Checks values against the schema."""

    def __init__(self) -> None:
        from pydantic import ConfigDict, TypeAdapter, create_model  # noqa: PLC0415 - slow to import

        strict = ConfigDict(extra="forbid", allow_inf_nan=False, title=None)
        place = {
            "component": (str, ...),
            "stage": (Stage, ...),
            "layer": (int | None, ...),
            "head": (int | None, ...),
            "score": (float | None, ...),
            "threshold": (float | None, ...),
        }
        culprit: Any = create_model("Culprit", __config__=strict, **place)  # type: ignore[call-overload]
        verdict: Any = create_model("Verdict", __base__=culprit, runner_up=(culprit | None, ...))
        profile: Any = create_model(
            "Profile", __config__=strict, sha=(str, ...), items=(int, ...), batteries=(int, ...)
        )
        fields: dict[str, Any] = {
            "span": (tuple[int, int] | None, ...),
            "level": (Level, ...),
            "verdict": (verdict, ...),
            "evidence": (dict[str, Any], ...),
            "profile": (profile | None, ...),
            "partial": (list[str], ...),
        }
        self._adapter: Any = TypeAdapter(create_model("Diagnosis", __config__=strict, **fields))

    def validate_python(self, values: Any) -> dict[str, Any]:
        """Return the values as the schema has them.

        Raises:
            InputError: They break it.
        """
        from pydantic import ValidationError  # noqa: PLC0415 - as above

        try:
            checked: dict[str, Any] = self._adapter.validate_python(values).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise InputError(f"This is no diagnosis by the schema: {place}: {first['msg']}.") from error
        return checked

    def write_schema(self) -> str:
        """Return the JSON schema as text."""
        return json.dumps(self._adapter.json_schema(), indent=2, sort_keys=True) + "\n"


@cache
def _schema_model() -> _Validator:
    return _Validator()


def write_schema() -> str:
    """Return the published JSON schema, the text of `verdict.schema.json`."""
    return _schema_model().write_schema()
