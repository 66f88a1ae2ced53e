"""What stands in generate's loop for the rows of a batch: draws by each row's own seed, and watches every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from lvlm_guard.serving.answer_rows import AnswerRow
from lvlm_guard.serving.engine import SampledChoice


class RowSampler(LogitsProcessor):
    """Draws the token of each row by a generator of its own, and leaves it as the only one that generate can take.

    generate draws all rows of a batch from one generator, so a sampled token would depend on how many rows stand above it.

    Args:
        choices: Temperature, top-p and seed of each row.
        top_k: Tokens that may be drawn, the likeliest first; 0 for all.
    """

    def __init__(self, choices: Sequence[SampledChoice], top_k: int) -> None:
        self._temperatures = [choice.temperature for choice in choices]
        self._shares = [choice.top_p for choice in choices]
        self._top_k = top_k
        self._generators = [torch.Generator("cpu").manual_seed(choice.seed) for choice in choices]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return scores `[rows, vocabulary]` that are minus infinity but for the drawn tokens."""
        temperatures, shares, draws = self._read_columns(scores.device)
        ranked, order = (scores.double() / temperatures).sort(dim=-1, descending=True, stable=True)
        mass = self._cut(ranked.softmax(-1), shares).cumsum(-1)
        rank = (mass <= draws * mass[:, -1:]).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter(-1, order.gather(-1, rank), 0.0)

    def _read_columns(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return temperatures, shares and the next number of each row, float64 `[rows, 1]`."""
        draws = [float(torch.rand((), generator=generator, dtype=torch.float64)) for generator in self._generators]
        columns = torch.tensor([self._temperatures, self._shares, draws], dtype=torch.float64, device=device)
        temperatures, shares, numbers = columns.unsqueeze(-1)
        return temperatures, shares, numbers

    def _cut(self, shares: Tensor, top_p: Tensor) -> Tensor:
        """Return probabilities, sorted from the largest, with 0 for those that top-k and top-p leave out; the first stays."""
        if self._top_k:
            kept_ranks = torch.arange(shares.shape[-1], device=shares.device) < self._top_k
            shares = shares * kept_ranks
        before = shares.cumsum(-1) - shares
        inside = before < top_p * shares.sum(-1, keepdim=True)
        inside[:, 0] = True
        return shares * inside


class RowMonitor(StoppingCriteria):
    """Hands every new token to its row, and ends rows one by one.

    Args:
        rows: In the order of the batch.
    """

    def __init__(self, rows: Sequence[AnswerRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return which rows are done, bool `[rows]`."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.accept(token)
        finished = [not row.is_open for row in self._rows]
        return torch.tensor(finished, dtype=torch.bool, device=input_ids.device)
