"""What a guarded call did: changes per strategy, branches, executor, forwards and time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from lvlm_guard.deprecation import renamed_fields
from lvlm_guard.errors import quote

LONGEST_PARAMETER = 60
"""Characters of a parameter in the short form of a report."""


@renamed_fields(changed="tokens_changed", touched="had_effect")
@dataclass(frozen=True)
class StrategyReport:
    """What one strategy did.

    Args:
        name: Its name.
        tokens_changed: Positions where main's logits plus this strategy's terms alone prefer another token than main;
            positions of finished rows do not count. None where only a run without it would tell: it acted by edits of
            inputs or layers, a search or a revision, or it changed logits but no best token while sampling, beams or
            processors decide. With one strategy, 0 says that the answer is plain generate's.
        positions: Positions looked at, all rows together.
        had_effect: Whether it changed a logit, main's inputs, a layer or an answer, or searched.
        branches: Keys of the branches it asked for.
        answers_revised: Rows whose answer it revised into another.
        parameters: Its parameters as plain values.
    """

    name: str
    tokens_changed: int | None
    positions: int
    had_effect: bool
    branches: tuple[str, ...] = ()
    answers_revised: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Change(NamedTuple):
    """A position where the strategies together prefer another token than main, before processors and sampling.

    Args:
        position: Index of the generated token in its row.
        main: Id of the best token by main's logits.
        guarded: Id of the best token with all terms added.
    """

    position: int
    main: int
    guarded: int


@dataclass(frozen=True)
class RequestReport:
    """What happened to one row of the output.

    Args:
        row: Index of the row.
        request: Index of its prompt in the batch; several rows share one where several answers are returned.
        changes: Where the choice changed; None where main's own choices are not known: with beams, whose final paths
            are put together from several rows, and where a strategy edited inputs or layers, searched or revised.
    """

    row: int
    request: int
    changes: tuple[Change, ...] | None


@dataclass(frozen=True)
class Origin:
    """What the answer was made with.

    Args:
        lvlm_guard: Version of this library.
        transformers: Version of transformers.
        model: Name or path that the model was loaded from; None where its config has none.
        model_commit: Commit of the model on its hub; None where its config has none.
    """

    lvlm_guard: str
    transformers: str
    model: str | None = None
    model_commit: str | None = None


@dataclass(frozen=True)
class Forwards:
    """Forwards of the decoding module per forward that plain generate would have run; 1.0 is plain generate."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Report:
    """What a guarded call did.

    Args:
        strategies: One entry per strategy, in stack order.
        executor: `batched`, `sequential`, `prefill only` when one token was enough, or `none` without branches.
        reason: Why that executor.
        forwards: Forwards per token, prefill and decode apart.
        rows_per_forward: Rows of a decode forward over rows of plain generate.
        rows: Rows of generate (batch times beams or returned sequences).
        tokens: Generated positions per row.
        seconds: Wall-clock time of the call.
        results: What strategies and observers left in `gen.results`, by name; plain values.
        requests: One entry per row of the output, rows that ran plain for want of an image included.
        origin: Versions and model; None in a report that no call made.
        answer_start: Index in every row of the output at which the answer begins: behind the prompt where the output repeats it,
            behind the decoder's own prompt for an encoder-decoder, 0 where the output holds new tokens alone.
        prompts: On a look, by `main` and the keys of the branches: `shared` where a prompt went on from the look, else why it ran
            whole; empty elsewhere.
        questions: Of questions that strategies asked before they finished, by `main` and the keys of the branches: `shared` where
            their prompts went on from those of this call, else why they did not; empty where nothing was asked.
    """

    strategies: tuple[StrategyReport, ...]
    executor: str
    reason: str
    forwards: Forwards
    rows_per_forward: int
    rows: int
    tokens: int
    seconds: float
    results: Mapping[str, Any] = field(default_factory=dict, hash=False)
    requests: tuple[RequestReport, ...] = ()
    origin: Origin | None = None
    answer_start: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    questions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of_plain(
        cls,
        output: Tensor,
        prompt: Tensor | None,
        seconds: float,
        origin: Origin | None = None,
        answer_start: int | None = None,
    ) -> Report:
        """Return the report of a call with an empty stack; without `answer_start`, answers begin behind the prompt."""
        start = answer_start if answer_start is not None else 0 if prompt is None else prompt.shape[1]
        rows, tokens = output.shape[0], output.shape[-1] - start
        per_request = 1 if prompt is None else max(rows // prompt.shape[0], 1)
        requests = tuple(RequestReport(row, row // per_request, ()) for row in range(rows))
        reason, forwards = "the stack is empty", Forwards(1.0, 1.0)
        return cls((), "none", reason, forwards, 1, rows, tokens, seconds, {}, requests, origin, start)

    @property
    def branches(self) -> tuple[str, ...]:
        """Keys of the branches that ran, each once."""
        return tuple(dict.fromkeys(key for strategy in self.strategies for key in strategy.branches))

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain values; each change is a list `[position, main, guarded]`."""
        values = dataclasses.asdict(self)
        for entry in values["requests"]:
            entry["changes"] = None if entry["changes"] is None else [list(change) for change in entry["changes"]]
        return {**values, "branches": list(self.branches)}

    def summarize(self) -> dict[str, Any]:
        """Return the report as plain values for a line of a log.

        `changed` counts the changed positions of each row, None where they are not known. Long parameters are abridged,
        and `results` names what was left there.
        """
        values = self.to_dict()
        del values["requests"]
        values["changed"] = [None if entry.changes is None else len(entry.changes) for entry in self.requests]
        values["results"] = list(self.results)
        for strategy in values["strategies"]:
            strategy["parameters"] = {name: _abridge(value) for name, value in strategy["parameters"].items()}
        return values

    def to_json(self, *, full: bool = False) -> str:
        """Return the report as JSON text, by default what `summarize` returns, and with `full` what `to_dict` returns."""
        return json.dumps(self.to_dict() if full else self.summarize())


def _abridge(value: Any) -> Any:
    return value if len(json.dumps(value)) <= LONGEST_PARAMETER else quote(value, LONGEST_PARAMETER)
