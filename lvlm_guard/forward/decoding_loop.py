"""A guarded decode that a search drives in place of generate's loop: feed, reorder, rewind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.arithmetic import fusion
from lvlm_guard.errors import InputError, ModeRefused
from lvlm_guard.forward import caches
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.strategy.generation import Generation


class GuardedLoop:
    """The `DecodingLoop` of one search.

    Args:
        prepared: Main as generate prepared it, with a row for every candidate, or one for every request whose cache is
            repeated once the prompt was run.
        gen: The generation that strategies see.
        requests: Prompts of the call.
        rows_per_request: Candidates of each.
        processors: The call's own logits processors, or None.
        criteria: The call's own stopping criteria, or None.
    """

    def __init__(
        self,
        prepared: PreparedDecode,
        gen: Generation,
        requests: int,
        rows_per_request: int,
        processors: Any,
        criteria: Any,
    ) -> None:
        self.gen = gen
        self.requests = requests
        self.rows_per_request = rows_per_request
        self.settings = prepared.settings
        self._module = prepared.module
        self._copies = requests * rows_per_request // prepared.input_ids.shape[0]
        self._prompts = prepared.input_ids.repeat_interleave(self._copies, dim=0)
        self._run = BranchRun(prepared)
        self._processors = processors
        self._criteria = criteria
        self._generated = self._prompts[:, :0]
        self._fed = -1
        self._logits: Tensor | None = None
        self._first_logits: Tensor | None = None
        caches.keep_whole(self._run.cache)

    @property
    def generated(self) -> Tensor:
        """Tokens generated so far `[rows, tokens]`."""
        return self._generated

    @property
    def limit(self) -> int:
        """How many tokens may be generated."""
        return max(int(self.settings.max_length) - self._prompts.shape[1], 1)

    @property
    def ids(self) -> Tensor:
        """Prompt and generated tokens `[rows, length]`."""
        return torch.cat([self._prompts, self._generated], dim=1)

    def logits(self) -> Tensor:
        """Logits `[rows, vocab]` of the next token, through the call's own processors."""
        logits = self._next_logits()
        return self._processors(self.ids, logits.clone()) if self._processors else logits

    def draw(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Drawn tokens and their log-probabilities before temperature, `[rows]` each.

        Raises:
            NonFiniteLogits: A row holds NaN, or nothing that may be drawn.
        """
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "rows": rows}
        return fusion.draw(self.logits(), step=self._generated.shape[1], **settings)

    def append(self, tokens: Tensor) -> None:
        """Choose the next token of every row `[rows]`."""
        if tokens.shape != self._generated.shape[:1]:
            raise InputError(f"append takes one token a row, {self._generated.shape[0]}, got {tuple(tokens.shape)}.")
        self._next_logits()
        self._generated = torch.cat([self._generated, tokens.to(self._generated)[:, None]], dim=1)
        self._logits = None

    def select(self, index: Tensor) -> None:
        """Continue row `index[i]` in row i, within the same request."""
        rows = torch.arange(len(index), device=index.device) // self.rows_per_request
        if not torch.equal(index // self.rows_per_request, rows):
            raise InputError("select may move candidates within one request only.")
        index = index.to(self._generated.device)
        if self._fed >= 0:
            self._run.reorder(index)
        self._generated = self._generated[index]
        self._logits = None if self._logits is None else self._logits[index]
        self._first_logits = None if self._first_logits is None else self._first_logits[index]

    def rewind(self, tokens: int) -> None:
        """Forget what was generated from token number `tokens` on."""
        if not 0 <= tokens <= self._generated.shape[1]:
            raise InputError(f"rewind to {tokens} of {self._generated.shape[1]} tokens.")
        if tokens == self._generated.shape[1]:
            return
        if (obstacle := self._find_obstacle()) is not None:
            raise ModeRefused(f"This search goes back, but {obstacle} of this model and version cannot forget tokens.")
        self._generated = self._generated[:, :tokens]
        self._logits = self._first_logits if tokens == 0 else None
        self._fed = min(self._fed, max(tokens - 1, 0))

    def finished(self) -> Tensor:
        """Rows that end here by the call's own criteria, bool `[rows]`."""
        if not self._criteria or self._generated.shape[1] == 0:
            return self._generated.new_zeros(self._generated.shape[0], dtype=torch.bool)
        finished: Tensor = self._criteria(self.ids, None)
        return finished

    def _next_logits(self) -> Tensor:
        """Combined logits of the next token, fp32."""
        if self._logits is None:
            self._logits = self._forward()
        return self._logits

    def _find_obstacle(self) -> str | None:
        """What keeps tokens from being forgotten."""
        across = anatomy.attends_across(self._module)
        return "the cross-attention" if across else caches.irreversible(self._run.cache)

    def _forward(self) -> Tensor:
        """Feed the tokens that the cache lacks; combined logits of the last position, fp32."""
        if self._fed < 0:
            self._fed, self._first_logits = 0, self._prefill()
            return self._first_logits
        new = self._generated.shape[1] - self._fed
        logits = self._run.feed(self._module, self._generated, new, 1)[:, -1].float()
        self._fed = self._generated.shape[1]
        return logits

    def _prefill(self) -> Tensor:
        """Run the prompts, once for candidates that share a prompt; combined logits of every row's first token, fp32."""
        no_tokens = self._generated[:: self._copies]
        logits = self._run.feed(self._module, no_tokens, 0, 1, first=True)[:, -1].float()
        if self._copies == 1:
            return logits
        index = torch.arange(len(logits), device=logits.device).repeat_interleave(self._copies)
        self._run.repeat(self._copies)
        self._run.reorder(index)
        return logits[index]
