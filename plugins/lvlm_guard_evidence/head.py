"""A linear head over projected image tokens: what it is made of, and what it makes of the tokens of one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import Artefact, InputError
from lvlm_guard_evidence.names import NamesTable

KIND = "patch_evidence"
"""The artefact that holds a head: named like the strategy that it is fitted for."""
LIMIT = 20.0
"""Greatest evidence, in nats either way."""


@dataclass(frozen=True)
class OddsScale:
    """Evidence as log-odds: `slope` times the raw score plus `offset`, fitted on calibration pictures."""

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, score: float) -> float:
        """Return log-odds of a raw score, within the limit."""
        return max(-LIMIT, min(LIMIT, self.slope * score + self.offset))


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm in front of the weights: states less their mean where it centres, by their root mean square, times weight plus bias.

    Args:
        weight: `[hidden]`.
        bias: `[hidden]`.
        centres: Whether the mean is taken off, as a layer norm does.
    """

    weight: Tensor
    bias: Tensor
    centres: bool = False

    def apply(self, states: Tensor) -> Tensor:
        """Return normed states `[..., hidden]`, fp32."""
        states = states.float()
        if self.centres:
            states = states - states.mean(-1, keepdim=True)
        scaled = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPSILON)
        return scaled * self.weight.to(states.device) + self.bias.to(states.device)


EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class EvidenceHead:
    """A fitted head.

    Args:
        weight: fp32 `[names + values, hidden]`.
        bias: fp32 `[names + values]`; of a name, that of the whole picture.
        table: Names in the order of the weights.
        values: Attribute values in the order of the weights, behind the names.
        peaks: Score from which a local maximum counts as one object, fp32 `[names]`.
        scales: Evidence as log-odds, by level.
        is_exclusive: Whether an object has one of the values, as of colours; else each by itself.
        source: What it was fitted on.
        settings: Further settings of the fit, mixing weights among them.
        layer: Whose output is read; 0 is what enters the decoder.
        norm: What is applied to it first.
    """

    weight: Tensor
    bias: Tensor
    table: NamesTable
    values: tuple[str, ...] = ()
    peaks: Tensor | None = None
    scales: Mapping[str, OddsScale] = field(default_factory=dict)
    is_exclusive: bool = True
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: int = 0
    norm: Norm | None = None

    @property
    def width(self) -> int:
        """Scores of one token."""
        return int(self.weight.shape[0])

    def score(self, tokens: Tensor) -> Tensor:
        """Return the scores of tokens `[..., hidden]`, fp32 `[..., names + values]`."""
        states = tokens.float() if self.norm is None else self.norm.apply(tokens)
        return states @ self.weight.to(tokens.device).T

    def read(self, scores: Tensor, places: Tensor) -> HeadEvidence:
        """Return what one picture shows.

        Args:
            scores: Of its tokens `[tokens, names + values]`.
            places: Row and column of each token as shares of the picture `[tokens, 2]`, NaN where unknown.
        """
        return HeadEvidence(self, scores.float().cpu(), places)


@dataclass(frozen=True, eq=False)
class HeadEvidence:
    """What one picture shows, read off the scores of its tokens; see `PictureEvidence`."""

    head: EvidenceHead
    scores: Tensor
    places: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the head knows, lower case, singular."""
        return self.head.table.names

    def existence(self, name: str) -> float | None:
        """Return log-odds that the picture shows such an object; None where the name is not known."""
        index = self._index(name)
        if index is None:
            return None
        raw = float(self.scores[:, index].logsumexp(0) + self.head.bias[index])
        return self._scale("object").apply(raw)

    def attribute(self, name: str, value: str) -> float | None:
        """Return log-odds that the object has this value; None where name or value is not known."""
        odds = self.attributes(name)
        return None if odds is None else odds.get(value)

    def attributes(self, name: str) -> dict[str, float] | None:
        """Return log-odds of every value, read at the object's tokens; None where the name is not known."""
        index = self._index(name)
        if index is None or not self.head.values:
            return None
        first = len(self.names)
        logits = self.attention(index) @ self.scores[:, first:] + self.head.bias[first:]
        if self.head.is_exclusive:
            logs = logits.double().log_softmax(0)  # single precision cannot tell a share from 1 beyond 17 nats
            logits = logs - torch.log1p(-logs.exp().clamp(max=1 - 1e-9))
        scale = self._scale("attribute")
        return {value: scale.apply(logit) for value, logit in zip(self.head.values, logits.tolist(), strict=True)}

    def relation(self, subject: str, direction: str, reference: str) -> float | None:
        """Return log-odds that one object lies left, right, above or below another; None where it cannot be told."""
        offset = self._offset(subject, reference, {"left": 1, "right": 1, "above": 0, "below": 0}.get(direction))
        if offset is None:
            return None
        return self._scale("relation").apply(offset if direction in ("left", "above") else -offset)

    def number(self, name: str) -> float | None:
        """Return how many such objects there are: local maxima of the scores above the fitted threshold, on a known grid."""
        index, grid = self._index(name), self.grid()
        if index is None or grid is None or self.head.peaks is None:
            return None
        scores = self.scores[: grid[0] * grid[1], index].view(1, 1, *grid)
        highest = torch.nn.functional.max_pool2d(scores, 3, 1, 1)
        return float(((scores >= highest) & (scores > self.head.peaks[index])).sum())

    def attention(self, index: int) -> Tensor:
        """Return where the object of this index is looked for: a distribution over the tokens `[tokens]`."""
        return self.scores[:, index].softmax(0)

    def place(self, name: str) -> tuple[float, float] | None:
        """Return the expected row and column of an object as shares of the picture; None where no grid is known."""
        index, located = self._index(name), ~self.places.isnan().any(1)
        if index is None or not bool(located.any()):
            return None
        attention = self.scores[located, index].softmax(0)
        row, column = (attention @ self.places[located]).tolist()
        return row, column

    def _offset(self, subject: str, reference: str, axis: int | None) -> float | None:
        places = self.place(subject), self.place(reference)
        if axis is None or places[0] is None or places[1] is None:
            return None
        return places[1][axis] - places[0][axis]

    def grid(self) -> tuple[int, int] | None:
        """Return rows and columns of the grid whose tokens come first; None where none is known."""
        located = self.places[~self.places.isnan().any(1)].tolist()
        return (len({row for row, _ in located}), len({column for _, column in located})) if located else None

    def _index(self, name: str) -> int | None:
        located = self.head.table.find(name)
        return None if located is None else self.names.index(located)

    def _scale(self, level: str) -> OddsScale:
        return self.head.scales.get(level, OddsScale())


def read_head(artefact: Artefact) -> EvidenceHead:
    """Return the head of an artefact.

    Raises:
        InputError: Its names, values and tensors do not fit each other.
    """
    settings = artefact.manifest.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    names, values = _texts(settings, "names", artefact), _texts(settings, "values", artefact)
    weight = artefact.read("weight", (len(names) + len(values), None))
    bias = artefact.read("bias", (len(names) + len(values),))
    peaks = artefact.read("peaks", (len(names),)) if "peaks" in artefact.tensors else None
    synonyms = {name: tuple(spellings) for name, spellings in dict(settings.get("synonyms") or {}).items()}
    scales = {level: OddsScale(*map(float, pair)) for level, pair in dict(settings.get("scales") or {}).items()}
    return EvidenceHead(
        weight,
        bias,
        NamesTable(names, synonyms),
        values,
        peaks,
        scales,
        is_exclusive=bool(settings.get("exclusive", True)),
        source=str(settings.get("source", "")),
        settings=settings,
        layer=int(settings.get("layer", 0)),
        norm=_read_norm(artefact, weight.shape[1], settings),
    )


def _read_norm(artefact: Artefact, width: int, settings: Mapping[str, Any]) -> Norm | None:
    if "norm_weight" not in artefact.tensors:
        return None
    weight, bias = (artefact.read(name, (width,)) for name in ("norm_weight", "norm_bias"))
    return Norm(weight, bias, centres=bool(settings.get("centres", False)))


def _texts(settings: Mapping[str, Any], name: str, artefact: Artefact) -> tuple[str, ...]:
    texts = settings.get(name, [])
    is_list = (
        isinstance(texts, Sequence) and not isinstance(texts, str) and all(isinstance(text, str) for text in texts)
    )
    if not is_list or (name == "names" and not texts):
        raise InputError(
            f"'patch_evidence' needs {name} in its artefact, and {artefact.path or 'this one'} lists none that can be read: fit it again."
        )
    return tuple(texts)
