"""Searches, which replace generate's loop, and revisions, which replace its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lvlm_guard.deprecation import renamed_fields


class DecodingLoop(Protocol):
    """The rows that a search drives: it feeds them token by token, and reads combined logits.

    Rows are grouped by request: `rows_per_request` candidates of the first request, then of the second.
    """

    gen: Any
    """The `Generation`: observations of the last forward, `gen.rows`."""
    requests: int
    rows_per_request: int
    settings: Any
    """The resolved generation config of the call: lengths, end and padding tokens, temperature."""

    @property
    def generated(self) -> Tensor:
        """Tokens generated so far `[rows, tokens]`."""
        ...

    @property
    def limit(self) -> int:
        """Greatest number of generated tokens."""
        ...

    def logits(self) -> Tensor:
        """Return logits `[rows, vocab]` of the next token: combined, then through the call's own logits processors."""
        ...

    def draw(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the next token of every row from `logits`, and its log-probability before temperature, `[rows]` each.

        Temperature, top-k (0 is off) and top-p (1 is off) as in transformers. A draw depends on `seed`, the number of
        the token and the row's id in `rows` (int64 `[rows]`, by default its number), never on the other rows.
        """
        ...

    def append(self, tokens: Tensor) -> None:
        """Choose the next token of every row `[rows]`."""
        ...

    def finished(self) -> Tensor:
        """Return which rows end here by the call's own criteria (end token, length, the user's), bool `[rows]`."""
        ...

    def select(self, index: Tensor) -> None:
        """Continue row `index[i]` in row i, within the same request."""
        ...

    def rewind(self, tokens: int) -> None:
        """Forget the generated tokens from number `tokens` on."""
        ...


@renamed_fields(alike="shared_prompt")
@dataclass(frozen=True)
class Search:
    """Replace generate's decoding loop.

    Args:
        run: Drives a `DecodingLoop` and returns the generated tokens `[requests, tokens]`, padded on the right.
        rows_per_request: Candidates kept side by side.
        shared_prompt: Whether the prompt of a request is run once for all of its candidates; False where
            edits inside the layers tell rows apart from the start.
    """

    run: Callable[[DecodingLoop], Tensor]
    rows_per_request: int = 1
    shared_prompt: bool = True


@dataclass(frozen=True)
class Revision:
    """Put a revised answer in place of the generated one.

    Args:
        row: Index of the request.
        text: The answer as text.
    """

    row: int
    text: str
