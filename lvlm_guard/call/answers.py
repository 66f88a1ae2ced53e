"""After decoding: the user's prompt back in front, and revised answers in place of generated ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.answered import AnsweredPrompts
from lvlm_guard.call.asking import Ask
from lvlm_guard.call.decoding import DecodedCall
from lvlm_guard.call.generation import describe_output
from lvlm_guard.call.plan import collect_values
from lvlm_guard.errors import PluginRejected, ProcessorNeeded
from lvlm_guard.forward import capture_decode
from lvlm_guard.outputs import measure_prompt, sequences
from lvlm_guard.protocols import Tokenizer
from lvlm_guard.strategy.loops import Revision


@dataclass(frozen=True, eq=False)
class FinishedOutput:
    """What a call returns.

    Args:
        output: As generate returned it, with the user's own prompt in front where it begins with a prompt, and revised answers.
        answer_start: Where the answers begin in each row.
        answers_revised: How many answers each strategy revised.
        questions: How the prompts of questions ran that strategies asked, by `"main"` and the keys of branches.
    """

    output: Any
    answer_start: int
    answers_revised: Mapping[str, int] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)


def finish_output(decoded: DecodedCall, state: Any = None) -> FinishedOutput:
    """Put the user's own prompt back, and let strategies revise the answers.

    Args:
        decoded: The decoded call.
        state: What the model was like before it, as `describe_state` tells it.

    Raises:
        ProcessorNeeded: There is a revision and no tokenizer.
        PluginRejected: A revision of a row outside the batch.
    """
    call, output, length = decoded.prepared.planned.call, decoded.output, decoded.answer_start
    if decoded.prepared.planned.request is not call.request and length:
        prompt = _find_own_prompt(decoded)
        output, length = restore_prompt(output, length, prompt), prompt.shape[1]
    if not call.strategies.active("finish"):
        return FinishedOutput(output, length)
    answered = _keep_answered(decoded, state)
    describe_output(call.gen, sequences(output)[:, length:], _bind(call.ask, answered))
    by_strategy = collect_values(call.ask_strategies, "finish")
    for name, revisions in by_strategy.items():
        _check_rows(name, revisions, len(sequences(output)))
        if revisions and call.strategies.observes(name):
            raise PluginRejected(
                f"{name}.finish revises an answer, but {name} states that it only observes: yield none."
            )
    tokenizer, settings = call.gen.model.tokenizer, decoded.prepared.main.settings
    changed = {
        name: _count_changed(output, replace_answers(output, length, revisions, tokenizer, settings), settings)
        for name, revisions in by_strategy.items()
        if revisions
    }
    revisions = [revision for values in by_strategy.values() for revision in values]
    if revisions:
        output = replace_answers(output, length, revisions, tokenizer, settings)
    return FinishedOutput(output, length, changed, answered.used)


def _bind(ask: Ask | None, answered: AnsweredPrompts) -> Callable[..., Any] | None:
    return None if ask is None else lambda questions, row, **options: ask(questions, row, answered, **options)


def _keep_answered(decoded: DecodedCall, state: Any) -> AnsweredPrompts:
    """Return what questions can go on from."""
    planned, effects = decoded.prepared.planned, set()
    for name, edits in planned.plan.edits.items():
        effects |= {(name, number) for number, edit in enumerate(edits) if planned.interventions.had_effect([edit])}
    return AnsweredPrompts(
        planned.plan,
        planned.request,
        decoded.kept_prompts,
        _find_obstacle(decoded),
        frozenset(effects),
        state,
        planned.main.rows_per_request,
    )


def _find_obstacle(decoded: DecodedCall) -> str:
    """Return why no question can go on from the prompts of this call; empty where some can."""
    planned = decoded.prepared.planned
    if planned.search is not None:
        return f"{planned.searching!r} kept candidates of its own"
    if names := [repr(name) for name, changed in planned.input_edits.items() if changed]:
        return f"{' and '.join(names)} edited main's own inputs"
    limit = anatomy.rotation_limit(planned.main.module.config)
    if limit is not None and planned.main.length > limit:
        return f"this model turns positions by the length of a prompt beyond {limit}"
    return "" if decoded.kept_prompts else "an edit inside the layers keeps something of whole prompts"


def _find_own_prompt(decoded: DecodedCall) -> Tensor:
    """Return what generate would have begun the output with, had no strategy edited the prompt `[requests, length]`."""
    planned = decoded.prepared.planned
    if measure_prompt(sequences(decoded.output), [planned.request.input_ids]) == decoded.answer_start:
        return planned.call.request.input_ids
    prepared = capture_decode(planned.call.generate, planned.call.request.without_cache, planned.preparation.settings)
    return prepared.input_ids[:: prepared.rows_per_request]


def _count_changed(drafts: Tensor, revised: Tensor, settings: Any) -> int:
    """Return how many rows of two outputs `[requests, length]` differ, padding apart."""
    longest = max(drafts.shape[1], revised.shape[1])
    padding = settings.pad_token_id if settings.pad_token_id is not None else 0
    both = [torch.nn.functional.pad(ids, (0, longest - ids.shape[1]), value=padding) for ids in (drafts, revised)]
    return int((both[0] != both[1]).any(1).sum())


def _check_rows(strategy: str, revisions: Sequence[Revision], rows: int) -> None:
    for revision in revisions:
        if not 0 <= revision.row < rows:
            raise PluginRejected(f"{strategy}.finish revises row {revision.row}, but there are {rows}, counted from 0.")


def restore_prompt(output: Any, edited_length: int, prompt: Tensor) -> Any:
    """Return generate's output with the user's `prompt` `[batch, length]` in place of an edited one."""
    ids = sequences(output)
    rows = prompt.repeat_interleave(ids.shape[0] // prompt.shape[0], dim=0)
    restored = torch.cat([rows.to(ids.device), ids[:, edited_length:]], dim=1)
    if isinstance(output, Tensor):
        return restored
    output["sequences"] = restored
    return output


def replace_answers(
    output: Tensor, length: int, revisions: Sequence[Revision], tokenizer: Tokenizer | None, settings: Any
) -> Tensor:
    """Return sequences `[requests, length + tokens]` with revised answers, ended and padded on the right.

    Raises:
        ProcessorNeeded: There is no tokenizer.
    """
    if tokenizer is None:
        raise ProcessorNeeded("Revised answers must be tokenized, so give the guard the processor.")
    answers = list(output[:, length:])
    for revision in revisions:
        ids = tokenizer(revision.text, add_special_tokens=False)["input_ids"]
        answers[revision.row] = output.new_tensor([*ids, *_end_tokens(settings)])
    longest = max(len(answer) for answer in answers)
    padding = settings.pad_token_id if settings.pad_token_id is not None else 0
    padded = [torch.nn.functional.pad(answer, (0, longest - len(answer)), value=padding) for answer in answers]
    return torch.cat([output[:, :length], torch.stack(padded)], dim=1)


def _end_tokens(settings: Any) -> list[int]:
    """Return the token that ends an answer, or nothing where there is none."""
    end = settings.eos_token_id
    end = end[0] if isinstance(end, (list, tuple)) else end
    return [] if end is None else [int(end)]
