"""After decoding: the user's prompt back in front, and revised answers in place of generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import InputError, ModeRefused, ProcessorNeeded
from lvlm_guard.outputs import sequences
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.loops import Revision

WHOLE_ONLY = ("return_dict_in_generate", "output_scores", "output_logits")


def refuse_partial_answers(request: Request, what: str) -> None:
    """Refuse arguments that need every token to be final when it is chosen.

    Raises:
        ModeRefused: A streamer, several sequences, or scores.
    """
    if request.settings.get("streamer") is not None:
        raise ModeRefused(f"{what} changes answers after they were generated, so nothing can be streamed: drop it.")
    if (request.setting("num_return_sequences") or 1) > 1:
        raise ModeRefused(f"{what} works on one answer a request: drop num_return_sequences.")
    for name in WHOLE_ONLY:
        if request.setting(name):
            raise ModeRefused(f"{what} cannot be combined with {name}: drop it.")


def with_prompt(output: Any, edited: int, prompt: Tensor) -> Any:
    """Generate's output with the user's prompt in place of an edited one of `edited` tokens."""
    found = sequences(output)
    rows = prompt.repeat_interleave(found.shape[0] // prompt.shape[0], dim=0)
    fresh = torch.cat([rows.to(found.device), found[:, edited:]], dim=1)
    if isinstance(output, Tensor):
        return fresh
    output["sequences"] = fresh
    return output


def revised(output: Tensor, length: int, revisions: Sequence[Revision], tokenizer: Any, settings: Any) -> Tensor:
    """Sequences `[requests, length + tokens]` with revised answers, ended and padded on the right.

    Raises:
        ProcessorNeeded: There is no tokenizer.
        InputError: A row outside the batch.
    """
    if tokenizer is None:
        raise ProcessorNeeded("Revised answers must be tokenized, so give the guard the processor.")
    answers = list(output[:, length:])
    for revision in revisions:
        if not 0 <= revision.row < len(answers):
            raise InputError(f"A revision names row {revision.row} of {len(answers)}.")
        ids = tokenizer(revision.text, add_special_tokens=False)["input_ids"]
        answers[revision.row] = output.new_tensor([*ids, *_end(settings)])
    longest = max(len(answer) for answer in answers)
    padding = settings.pad_token_id if settings.pad_token_id is not None else 0
    padded = [torch.nn.functional.pad(answer, (0, longest - len(answer)), value=padding) for answer in answers]
    return torch.cat([output[:, :length], torch.stack(padded)], dim=1)


def _end(settings: Any) -> list[int]:
    end = settings.eos_token_id
    end = end[0] if isinstance(end, (list, tuple)) else end
    return [] if end is None else [int(end)]
