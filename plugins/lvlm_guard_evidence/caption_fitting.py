"""Choose the weights of captions on calibration pictures: fewer inventions, and what is there still named."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import NoEffectWarning
from lvlm_guard.fitting import LabelledPicture, Track
from lvlm_guard_evidence.captions import CaptionTrial, CaptionWeights
from lvlm_guard_evidence.claims import parse_mentions
from lvlm_guard_evidence.head import EvidenceHead
from lvlm_guard_evidence.sources import describe_pictures, read_first_tokens

CAPTIONS = 120
"""Calibration pictures that are captioned at most."""
TRIALS = (CaptionWeights(0.5, 0.0), CaptionWeights(1.0, 0.0), CaptionWeights(1.0, 1.5))
GAIN, LOSS = 1.64, 1.0
"""Standard errors by which inventions must fall, and recall may."""


def fit_captions(
    model: Any, processor: Any, head: EvidenceHead, pictures: Sequence[LabelledPicture], track: Track
) -> tuple[CaptionWeights | None, dict[str, Any]]:
    """Return the weights under which captions invent least, None where none helps, and what was counted.

    Inventions must fall by more than noise, and the objects that are named not by more than a standard error and one in a hundred.
    """
    captioned = pictures[:CAPTIONS]
    plain = _count(describe_pictures(model, processor, captioned, track), captioned, head)
    report: dict[str, Any] = {"pictures": len(captioned), "greedy": _describe(plain)}
    best: tuple[float, CaptionWeights] | None = None
    for weights in TRIALS:
        trial = CaptionTrial(head, weights, read_first_tokens(processor))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            texts = describe_pictures(model, processor, captioned, track, stack=[trial])
        counts = _count(texts, captioned, head)
        report[f"{weights.weight} {weights.offset}"] = _describe(counts)
        fallen = _change(plain[:, 0] - counts[:, 0])
        lost = _change(plain[:, 1] - counts[:, 1])
        keeps = lost[0] <= LOSS * lost[1] and lost[0] <= 0.01 * float(plain[:, 1].sum())
        if fallen[0] > GAIN * fallen[1] and keeps and (best is None or fallen[0] > best[0]):
            best = (fallen[0], weights)
    return (None if best is None else best[1]), report


def _count(texts: Sequence[str], pictures: Sequence[LabelledPicture], head: EvidenceHead) -> Tensor:
    """Return how many objects each caption invents, and how many of those that are there it names `[pictures, 2]`."""
    words = [word for name in head.table.names for word in head.table.spellings(name)]
    counts = []
    for text, picture in zip(texts, pictures, strict=True):
        named = set(head.table.merge(claim.subject for _, claim in parse_mentions(text, words)))
        present = set(head.table.merge(thing.name for thing in picture.objects or ()))
        counts.append([len(named - present), len(named & present)])
    return torch.tensor(counts, dtype=torch.float64)


def _change(differences: Tensor) -> tuple[float, float]:
    """Return the sum of differences by picture, and its standard error."""
    return float(differences.sum()), float(differences.std()) * math.sqrt(len(differences)) if len(
        differences
    ) > 1 else math.inf


def _describe(counts: Tensor) -> dict[str, float]:
    return dict(zip(("invented", "named"), counts.sum(0).tolist(), strict=True))
