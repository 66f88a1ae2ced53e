"""What a language model expects to read next: log-probabilities of continuations, without any picture."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_guard.cache_names import find_cache, name_of_cache

Scores = NDArray[np.float64]
_Ids = tuple[int, ...]


class TextScorer:
    """Scores continuations of a text by a causal language model.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, with a chat template.
        request: What a user asks; every text is the beginning of the answer to it.
    """

    def __init__(self, model: Any, tokenizer: Any, request: str) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        messages = [{"role": "user", "content": request}]
        start = self._ids(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        with torch.no_grad():
            self._start = find_cache(self._model(input_ids=torch.tensor([start]), use_cache=True))

    @torch.no_grad()
    def score(self, text: str, continuations: Sequence[str]) -> Scores:
        """Return the log-probability (nats, float64, shape `[continuations]`) of each continuation after the same text.

        The text is run once. After it are run the beginnings that continuations share, each once, and no last token.
        """
        output = self._read(text)
        rows = [self._ids(words) for words in continuations]
        after: dict[_Ids, torch.Tensor] = {(): _log_probabilities(output.logits[0, -1])}
        after.update(self._run(find_cache(output), _longest([row[:-1] for row in rows if len(row) > 1])))
        return np.asarray([sum(float(after[row[:at]][row[at]]) for at in range(len(row))) for row in rows])

    @torch.no_grad()
    def score_next(self, text: str, middles: Sequence[str], words: Sequence[str]) -> Scores:
        """Return the log-probability of the first token of each word after a text and each middle, `[middles, words]`."""
        output = self._read(text)
        rows = [self._ids(middle) for middle in middles]
        after = self._run(find_cache(output), rows)
        firsts = [self._ids(word)[0] for word in words]
        return np.asarray([after[row][firsts].tolist() for row in rows])

    def _read(self, text: str) -> Any:
        """Run a text as the beginning of an answer; only what is next is predicted."""
        ids = torch.tensor([self._ids(text)])
        return self._forward(ids, copy.deepcopy(self._start), logits_to_keep=1)

    def _run(self, cache: Any, beginnings: list[_Ids]) -> dict[_Ids, torch.Tensor]:
        """Return the log-probabilities after each beginning and each beginning of one; rows are padded on the right."""
        if not beginnings:
            return {}
        length, widest = cache.get_seq_length(), max(map(len, beginnings))
        ids = torch.tensor([[*row, *[0] * (widest - len(row))] for row in beginnings])
        cache.batch_repeat_interleave(len(beginnings))
        mask = torch.ones(len(beginnings), length + widest, dtype=torch.long)
        logits = self._forward(ids, cache, attention_mask=mask).logits
        return {
            row[: at + 1]: _log_probabilities(logits[number, at])
            for number, row in enumerate(beginnings)
            for at in range(len(row))
        }

    def _forward(self, ids: torch.Tensor, cache: Any, **settings: Any) -> Any:
        name = name_of_cache(inspect.signature(self._model.forward).parameters)
        return self._model(input_ids=ids, **{name: cache}, **settings)

    def _ids(self, text: str) -> _Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)


def _longest(beginnings: Sequence[_Ids]) -> list[_Ids]:
    """Leave out what another one begins with."""
    every = set(beginnings)
    return sorted(
        beginning
        for beginning in every
        if not any(len(longer) > len(beginning) and longer[: len(beginning)] == beginning for longer in every)
    )
