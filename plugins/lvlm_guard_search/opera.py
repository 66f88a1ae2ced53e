"""Over-trust penalty and retrospection: beams that keep summing up one token are penalised, then taken back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import AttentionCapture, DecodingLoop, Generation, Search, View, hookimpl
from lvlm_guard.fields import Count
from lvlm_guard_search.beams import CPU, Beams, Rules

KEY = "last attention"
FLOOR = 1e-7


@dataclass(frozen=True)
class OPERA:
    """Beam search on `log softmax(z - weight phi)` over each beam's candidates, with rollback.

    Huang et al., arXiv 2311.17911, eq. 2-6, constants of the released code. A is the last layer's attention, greatest
    head, each row divided by its sum; `phi = max_j 1e-7 prod_{i >= j} scale A_ij` over generated tokens i, j, the
    candidate as the newest query. Up to `opening` tokens phi is minus the attention to the image. Where the j that won
    most often is the same in all beams and won `threshold` times in each, the search returns to just behind it and
    chooses otherwise; after `rollbacks` returns to one place it tries one place earlier, then goes on.

    Every candidate is a row of the batch, so its own forward yields both its attention and the logits behind it. The
    released code shares rollbacks across a batch, swallows every error in them, and scores in half precision; here
    each request goes back alone while others replay their tokens, products are taken as fp32 logarithms, and a beam
    counts the winners of its own tokens. The first step has at least as many candidates as beams. Needs a cache that
    can forget tokens. `weight = 0` is neutral: generate's own loop.
    """

    name: ClassVar[str] = "opera"
    family: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 2311.17911"
    cost: ClassVar[str] = "beams times candidates rows, and repeated steps"
    neutral: ClassVar[dict[str, float]] = {"weight": 0.0}

    weight: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False, description="weight of the penalty")] = 1.0
    beams: Annotated[Count, Field(le=100, description="beams kept")] = 5
    candidates: Annotated[Count, Field(le=1000, description="candidates of a beam at each step")] = 5
    scale: Annotated[
        float, Field(gt=0, le=10_000, allow_inf_nan=False, description="factor of attention in the product")
    ] = 50.0
    threshold: Annotated[Count, Field(description="wins of one token that send the beams back")] = 15
    rollbacks: Annotated[int, Field(ge=0, le=10_000, description="most returns to one place; 0 never returns")] = 5
    opening: Annotated[
        int, Field(ge=0, le=10_000, description="tokens rewarded for image attention and never taken back")
    ] = 10
    window: Annotated[Count, Field(description="newest tokens that are looked at")] = 512

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionCapture]:
        """Capture the last layer's attention of the newest token."""
        yield AttentionCapture(KEY, (1.0, 1.0), newest_attention)

    @hookimpl
    def search(self, gen: Generation) -> Iterable[Search]:
        """Run beam search with penalty and rollback."""
        yield Search(self._run, self.beams * self.candidates)

    def _run(self, loop: DecodingLoop) -> Tensor:
        rules = Rules(self.beams, self.candidates, self.threshold, self.rollbacks, self.opening, self.window)
        requests = [Beams(rules, loop.settings) for _ in range(loop.requests)]
        while not all(request.is_done for request in requests):
            logits = read_logits(loop).float().view(loop.requests, loop.rows_per_request, -1)
            step = loop.generated.shape[1]
            proposals = [request.propose(step, rows) for request, rows in zip(requests, logits, strict=True)]
            tokens, values = (torch.cat(parts) for parts in zip(*proposals, strict=True))
            loop.append(tokens)
            read_logits(loop)
            penalty, winner = self._penalty(loop)
            columns = (tokens, values, self.weight * penalty, winner, loop.finished())
            facts = torch.stack([column.float() for column in columns], dim=-1)  # token ids are exact in fp32
            per_request = facts.view(loop.requests, loop.rows_per_request, -1).cpu()
            index = [
                request.choose(step, *rows.unbind(-1)) for request, rows in zip(requests, per_request, strict=True)
            ]
            loop.select(global_rows(loop, index))
            go_back(loop, requests)
        return torch.nn.utils.rnn.pad_sequence(
            [request.answer() for request in requests],
            batch_first=True,
            padding_value=loop.settings.pad_token_id or 0,
        )

    def _penalty(self, loop: DecodingLoop) -> tuple[Tensor, Tensor]:
        """Return the penalty of every row's newest token, and the token that won; `[rows]` each."""
        tokens = loop.generated.shape[1]
        attention = loop.gen.rows[KEY].to(loop.generated.device)
        phi, winner = over_trust(attention[:, 1:, 1 : tokens + 1], self.scale, self.window)
        return (-attention[:, -1, 0] if tokens <= self.opening else phi), winner


def newest_attention(probabilities: Tensor, view: View) -> Tensor:
    """Return the attention of the last position `[rows, 1 + keys]`, greatest head, of sum 1, after its share on the image."""
    row = probabilities[:, :, -1].amax(1)
    row = row / row.sum(-1, keepdim=True)
    return torch.cat([(row * view.keys).sum(-1, keepdim=True), row], dim=-1)


def over_trust(attention: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """Return the greatest column product of lower-triangular maps `[rows, tokens, tokens]` and its column, `[rows]` each."""
    tokens = attention.shape[-1]
    local = attention[:, -window:, -window:].float()
    columns = (local * scale).log().masked_fill(torch.ones_like(local[0]).tril() == 0, 0.0).sum(1)
    best, winner = columns.max(-1)
    logarithm = best + torch.tensor(FLOOR, device=best.device).log()
    return logarithm.clamp(max=80.0).exp(), winner + max(tokens - window, 0)


def read_logits(loop: DecodingLoop) -> Tensor:
    """Return the logits of the next token, and append the attention behind them to the rows; one entry per forward."""
    logits = loop.logits()
    tokens, rows = loop.generated.shape[1], loop.gen.rows
    if KEY not in rows or rows[KEY].shape[1] == tokens:
        row = loop.gen.observations[KEY, loop.gen.model.depth - 1]
        generated = row[:, row.shape[1] - tokens :]
        rows.append(
            KEY, torch.nn.functional.pad(torch.cat([row[:, :1], generated], -1), (0, loop.limit - tokens))[:, None]
        )
    return logits


def global_rows(loop: DecodingLoop, index: Iterable[Tensor]) -> Tensor:
    """Turn row indices within each request into indices of all rows."""
    width = loop.rows_per_request
    return torch.cat([rows + number * width for number, rows in enumerate(index)])


def go_back(loop: DecodingLoop, requests: Iterable[Beams]) -> None:
    """Take back tokens of the requests that go back; the others replay theirs."""
    returns = [request.retrospect(loop.generated.shape[1]) for request in requests]
    if any(way is not None for way in returns):
        identity = torch.arange(loop.rows_per_request, device=CPU)
        loop.select(global_rows(loop, [identity if way is None else way.index for way in returns]))
        shared = min(way.shared for way in returns if way is not None)
        loop.rewind(shared)
        loop.gen.rows.crop(max(shared, 1))
