"""Evidence in captions: names of objects that the picture does not show are made less likely at every token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard import Bias, Generation, HiddenEdit, Term, hookimpl
from lvlm_guard_evidence.answers import FirstTokens
from lvlm_guard_evidence.head import EvidenceHead
from lvlm_guard_evidence.reading import RowEvidence, evidence_of, remember_tokens

DESCRIBES = re.compile(r"\b(?:describe|caption|what (?:is|do you see) in)\b", re.IGNORECASE)
"""What a prompt says that asks for a caption."""


@dataclass(frozen=True)
class CaptionWeights:
    """Weights of captions: a name's first tokens get `weight * evidence + offset` where that is negative, else nothing.

    Args:
        weight: Weight of the evidence; 0 is neutral.
        offset: How much evidence against a name is passed over, in logits.
    """

    weight: float = 0.0
    offset: float = 0.0


def read_caption_weights(settings: Mapping[str, Any]) -> CaptionWeights | None:
    """Return the weights of captions, where some were fitted."""
    weights = settings.get("captions")
    return CaptionWeights(*map(float, weights)) if isinstance(weights, Sequence) and weights else None


def build_caption_bias(
    evidence: Sequence[RowEvidence | None],
    described: Sequence[bool],
    head: EvidenceHead,
    beginnings: FirstTokens,
    weights: CaptionWeights,
    like: Tensor,
) -> Tensor:
    """Return what is added to the logits of every token of a caption, fp32 `[requests, vocab]`, 0 where none is asked for.

    Args:
        evidence: What the pictures of each request show.
        described: Which requests ask for a caption.
        head: The head.
        beginnings: Finds first tokens of names; a token that begins two names is left alone.
        weights: Weights.
        like: Logits `[..., vocab]`, for size and device.
    """
    bias = torch.zeros(len(evidence), like.shape[-1], device=like.device, dtype=torch.float32)
    ids = {
        name: set().union(*(beginnings.begin(word) for word in head.table.spellings(name))) for name in head.table.names
    }
    for row, (picture, is_described) in enumerate(zip(evidence, described, strict=True)):
        if picture is None or not is_described:
            continue
        for name, tokens in ids.items():
            rivals = set().union(*(ids_of_rival for rival, ids_of_rival in ids.items() if rival != name))
            push = min(0.0, weights.weight * (picture.existence(name) or 0.0) + weights.offset)
            bias[row, sorted(tokens - rivals)] = push
    return bias


@dataclass(frozen=True)
class CaptionTrial:
    """Captions under weights that are tried on calibration pictures.

    Args:
        head: The head.
        weights: Weights.
        beginnings: Finds first tokens.
    """

    name: ClassVar[str] = "evidence-captions"

    head: Any
    weights: Any
    beginnings: Any

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Remember the image tokens."""
        yield remember_tokens(gen, self.head)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Add the bias at every token."""
        yield Bias(spread_bias(gen, self._build(gen)))

    def _build(self, gen: Generation) -> Tensor:
        if self.name not in gen.state:
            evidence = evidence_of(gen, self.head)
            all_described = [True] * len(evidence)
            gen.state[self.name] = build_caption_bias(
                evidence, all_described, self.head, self.beginnings, self.weights, gen.logits()
            )
        bias: Tensor = gen.state[self.name]
        return bias


def spread_bias(gen: Generation, bias: Tensor) -> Tensor:
    """Return a bias of requests `[requests, vocab]` for every row of generate `[rows, vocab]`; beams keep to their request."""
    return bias.repeat_interleave(gen.logits().shape[0] // len(bias), dim=0)
