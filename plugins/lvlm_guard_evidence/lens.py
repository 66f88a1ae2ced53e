"""The logit lens at image positions: names read off inner states by the model's own final norm and head, with nothing fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import ModelRefused
from lvlm_guard.fitting import LabelledPicture, Track, depth_and_heads, find_final_norm
from lvlm_guard_evidence.answers import FirstTokens
from lvlm_guard_evidence.head import EvidenceHead, Norm
from lvlm_guard_evidence.head_fitting import Recorded, stack_tokens
from lvlm_guard_evidence.names import NamesTable
from lvlm_guard_evidence.recording import record_tokens
from lvlm_guard_evidence.sources import read_first_tokens

DEPTHS = (0.0, 0.5, 0.75, 1.0)
"""Layers whose outputs are tried, as shares of the depth; 0 is what enters the decoder."""
PROBES = 4
TOLERANCE = 1e-3


def build_lenses(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    table: NamesTable,
    values: Sequence[str],
    track: Track,
) -> list[tuple[EvidenceHead, Recorded]]:
    """Return a head for each layer that is tried, with the states of the pictures there.

    The weight of a name is the mean of the head's rows of its first tokens; the bias takes off what the pictures score on average.

    Raises:
        ModelRefused: The model shows no head, or a final norm that is none that is known.
    """
    output = model.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise ModelRefused(
            f"'patch_evidence' needs a head to read states as words, and {type(model).__name__} shows none: choose another source."
        )
    beginnings, depth = read_first_tokens(processor), depth_and_heads(model)[0]
    rows = [_mean_row(output.weight, beginnings, table.spellings(name)) for name in table.names]
    rows += [_mean_row(output.weight, beginnings, (value,)) for value in values]
    weight, norm = torch.stack(rows), read_norm(find_final_norm(model), output.weight.shape[1])
    lenses = []
    for layer in dict.fromkeys(round(share * depth) for share in DEPTHS):
        states, places = record_tokens(model, processor, [each.picture for each in pictures], track, layer=layer)
        recorded = stack_tokens(states, places)
        head = EvidenceHead(
            weight, torch.zeros(len(weight)), table, tuple(values), source="lens", layer=layer, norm=norm
        )
        lenses.append((_centre(head, recorded), recorded))
    return lenses


def _centre(head: EvidenceHead, recorded: Recorded) -> EvidenceHead:
    """Return a head whose scores of pictures are 0 on average."""
    totals = torch.stack(
        [head.score(each[valid]).logsumexp(0) for each, valid in zip(recorded.tokens, recorded.valid, strict=True)]
    )
    return EvidenceHead(
        head.weight, -totals.mean(0), head.table, head.values, source=head.source, layer=head.layer, norm=head.norm
    )


def _mean_row(weight: Tensor, beginnings: FirstTokens, words: Sequence[str]) -> Tensor:
    ids = sorted({token for word in words for token in beginnings.begin(word)})
    return weight[ids].float().cpu().mean(0) if ids else torch.zeros(weight.shape[1])


@torch.no_grad()
def read_norm(module: nn.Module | None, width: int) -> Norm | None:
    """Return a final norm as what it computes, found out by what it makes of random states; None where there is none.

    Raises:
        ModelRefused: It is neither a root-mean-square norm nor a layer norm.
    """
    if module is None:
        return None
    parameter = next(module.parameters(), torch.zeros(1))
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(PROBES, width, generator=draw) * 3 + 0.5
    normed = module(states.to(parameter)).float().cpu()
    zero = module(torch.zeros(1, width).to(parameter)).float().cpu()[0]
    for centres in (False, True):
        plain = Norm(torch.ones(width), zero, centres=centres).apply(states)
        scale = ((normed - zero) * (plain - zero)).sum(0) / (plain - zero).square().sum(0)
        norm = Norm(scale, zero, centres=centres)
        if float((norm.apply(states) - normed).abs().max()) <= TOLERANCE * float(normed.abs().max()):
            return norm
    raise ModelRefused(
        f"'patch_evidence' needs a root-mean-square norm or a layer norm behind the layers, and {type(module).__name__} is neither: choose "
        "another source."
    )
