"""The one object that travels through every hook of one guarded call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.deprecation import renamed_attribute, warn_renamed
from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.strategy import user_functions
from lvlm_guard.strategy.answer_words import NO, YES, subtract_logits
from lvlm_guard.strategy.branches import MAIN, Branch
from lvlm_guard.strategy.edits import Readout, readout_layers
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.prompt import ModelInfo, Prompt, PromptStates
from lvlm_guard.strategy.results import CallResults
from lvlm_guard.strategy.rows import Rows
from lvlm_guard.strategy.terms import Source, Statistics


@dataclass
class Services:
    """What the core runs on a strategy's behalf; None while the call cannot run it. Strategies use the methods of `Generation`.

    Args:
        measure: Makes the row statistics of a forward.
        run_prompt: Runs the prompt of main (None) or of a branch once, without edits inside the layers; set before `start`.
        ask: Asks the guarded model about the picture of a request, `ask(questions, row)`; with `read="first_logits"` it returns
            logits `[questions, vocab]` of the first token in place of answers. Set before `finish`.
        find_finished: Tells which rows of generated tokens `[rows, tokens]` have ended; set before `start`.
    """

    measure: Callable[[Generation], Statistics] | None = None
    run_prompt: Callable[[Branch | None], PromptStates] | None = None
    ask: Callable[..., Any] | None = None
    find_finished: Callable[[Tensor], Tensor] | None = None

    def withdraw(self) -> None:
        """End all of them with the call, whose caches they would keep in a cycle with what strategies see."""
        self.measure = self.run_prompt = self.ask = self.find_finished = None


@dataclass
class Generation:
    """State of one guarded call. The core writes, strategies read; what a strategy keeps goes to `state` or `rows`.

    `prompt`, `model` and `forward` hold the facts by subject. What every strategy needs has a shorthand here: `logits`,
    `step`, `positions`, `readouts`, `statistics`, `combined`, `tokenize` and `call_user_function`.

    Args:
        prompt: What was asked.
        model: The model that answers.
        forward: The result of the current forward; set in `terms` and `observe`.
        rows: Per-row tensors that follow beams and rejected candidates.
        state: Anything else a strategy keeps for this call, by its name.
        observations: What captures observed last, by (key of the capture, layer).
        services: What the core runs behind `statistics`, `prompt_states`, `ask`, `margins` and `finished`.
        is_inner: Whether the call was made inside another guarded call, as the questions of `ask` are. Observers that
            count or log what users asked leave these out.
        results: What the strategy leaves in the report, by its name: plain values, or tensors, which become lists.
    """

    prompt: Prompt
    model: ModelInfo = field(default_factory=ModelInfo)
    forward: Forward | None = None
    rows: Rows = field(default_factory=Rows)
    state: dict[str, Any] = field(default_factory=dict)
    observations: dict[tuple[Hashable, int], Tensor] = field(default_factory=dict)
    services: Services = field(default_factory=Services)
    is_inner: bool = False
    results: CallResults = field(default_factory=CallResults)

    def __post_init__(self) -> None:
        self._output_ids: Tensor | None = None

    @property
    def step(self) -> int:
        """Index of the first generated token that this forward predicts; 0 in the prefill."""
        return self._current.first_position

    @property
    def positions(self) -> Tensor:
        """Indices of the generated tokens that this forward predicts `[positions]`, on the device of the logits."""
        logits = self._current.main
        return torch.arange(logits.shape[1], device=logits.device) + self.step

    @property
    def generated(self) -> Tensor:
        """Tokens chosen so far `[rows, step]`, int64, following beams and searches; available in `terms` and `observe`.

        Where several positions are predicted at once, position j follows `generated` and the first j of `drafts`.
        """
        return self._fed_tokens[:, : self.step]

    @property
    def drafts(self) -> Tensor:
        """Tokens of an assistant that this forward tries `[rows, positions - 1]`, int64; generate may reject them."""
        return self._fed_tokens[:, self.step :]

    @property
    def finished(self) -> Tensor:
        """Rows that have ended, bool `[rows]`: what this forward predicts for them is padding.

        End tokens and stop strings are seen at once. A stopping criterion of the caller's is known by the padding
        behind it, one token later.
        """
        if self.services.find_finished is None:
            raise InputError("This generation does not know how answers end: set gen.services.find_finished.")
        return self.services.find_finished(self.generated)

    @property
    def combined(self) -> Tensor:
        """Logits that generate receives `[rows, positions, vocab]`; available in `observe`."""
        if self._current.combined is None:
            raise InputError("gen.combined is available only in observe, after the terms are added.")
        return self._current.combined

    @property
    def statistics(self) -> Statistics:
        """Row statistics of this forward; available in `terms` and `observe`."""
        forward = self._current
        if forward.statistics is None:
            if self.services.measure is None:
                raise InputError("This generation was made without row statistics: set gen.services.measure.")
            forward.statistics = self.services.measure(self)
        return forward.statistics

    @property
    def output_ids(self) -> Tensor:
        """Generated ids `[batch, tokens]`; available in `finish`."""
        if self._output_ids is None:
            raise InputError("gen.output_ids is available only in finish, after the answer is decoded.")
        return self._output_ids

    @output_ids.setter
    def output_ids(self, ids: Tensor) -> None:
        self._output_ids = ids

    def logits(self, source: Source = MAIN) -> Tensor:
        """Return raw logits `[rows, positions, vocab]` of main or a branch in this forward; read only."""
        if isinstance(source, str) and source == MAIN:
            return self._current.main
        key = getattr(source, "key", source)
        if key not in self._current.branches:
            keys = ", ".join(repr(name) for name in self._current.branches) or "none"
            raise InputError(f"No branch has the key {key!r}. Branches of this call: {keys}.")
        return self._current.branches[key]

    def readouts(self, readout: Readout) -> Tensor:
        """Return logits `[layers, rows, positions, vocab]` of a readout of this strategy, in its order; read only."""
        readouts = self._current.readouts
        layers = readout_layers(readout, self.model.depth)
        if any((layer, readout.final_norm) not in readouts for layer in layers):
            raise InputError(f"{readout} was not requested: yield it in the readouts hook.")
        return self._current.stacked(layers, normed=readout.final_norm)

    def prompt_states(self, branch: Branch | None = None) -> PromptStates:
        """Run the prompt of main, or of a branch, once and without edits inside the layers; a prefill each time.

        Raises:
            InputError: Main is not prepared yet: `start` is the first hook that can ask.
        """
        if self.services.run_prompt is None:
            raise InputError("gen.prompt_states is available from start on: main is not prepared yet.")
        return self.services.run_prompt(branch)

    def ask(self, questions: Sequence[str], row: int) -> list[str]:
        """Ask the guarded model questions about the picture of request number `row`; return its short answers.

        Raises:
            InputError: The answer is not decoded yet: `finish` is the only hook that can ask. Or the row has no picture, or is not
                known to have a single one.
            ProcessorNeeded: The guard has no processor, or does not know the pictures.
        """
        answers: list[str] = self._find_ask("gen.ask")(questions, row)
        return answers

    def margins(
        self, questions: Sequence[str], row: int, *, yes: Sequence[str] = YES, no: Sequence[str] = NO
    ) -> list[float]:
        """Ask the guarded model yes/no questions about the picture of request number `row`; return how far it leans to yes.

        A margin is the greatest logit of the tokens that begin `yes` minus that of those that begin `no`, where the first token
        of the answer is predicted, before generate's own processors: above 0 where yes is the likelier of the two. The questions
        are those of `ask`, asked in one batch on one look where the model allows it.

        Raises:
            InputError: As `ask`; or yes and no begin with the same token.
            ProcessorNeeded: As `ask`.
        """
        if not questions:
            return []
        logits = self._find_ask("gen.margins")(questions, row, read="first_logits")
        return subtract_logits(logits, self.tokenize, getattr(self.model.tokenizer, "unk_token_id", None), yes, no)

    def _find_ask(self, name: str) -> Callable[..., Any]:
        if self.services.ask is None:
            raise InputError(f"{name} is available only in finish, after the answer is decoded.")
        return self.services.ask

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text` without special tokens.

        Raises:
            ProcessorNeeded: The guard has neither processor nor tokenizer.
        """
        if self.model.tokenizer is None:
            raise ProcessorNeeded(
                f"Text must be tokenized ({text[:40]!r}), so give the guard the processor: Guard(model, processor)."
            )
        return tuple(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def call_user_function(self, function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
        """Call a function of the user's, a callable or "package.module:function", and return its result.

        Raises:
            InputError: It cannot be imported, raises, or takes longer than `timeout` seconds; `what` names it.
        """
        return user_functions.call_user_function(function, *arguments, what=what, timeout=timeout)

    def multiply_rows(self, times: int) -> None:
        """Note that every row of generate became `times` rows; the core calls it."""
        self.prompt = dataclasses.replace(self.prompt, rows_per_request=self.prompt.rows_per_request * times)

    @property
    def _fed_tokens(self) -> Tensor:
        tokens, logits = self._current.tokens, self._current.main
        if tokens is None:
            raise InputError("This forward was made without its tokens: set tokens of gen.forward.")
        return tokens.to(logits.device).expand(logits.shape[0], -1)

    @property
    def _current(self) -> Forward:
        if self.forward is None:
            raise InputError("There are no logits yet: they are available only in terms and observe.")
        return self.forward

    def consult(self, function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
        """Deprecated: use `call_user_function`."""
        warn_renamed("gen.consult", "gen.call_user_function")
        return self.call_user_function(function, *arguments, what=what, timeout=timeout)

    inputs = renamed_attribute("gen.inputs", "prompt.inputs")
    input_ids = renamed_attribute("gen.input_ids", "prompt.ids")
    attention_mask = renamed_attribute("gen.attention_mask", "prompt.attention_mask")
    image_mask = renamed_attribute("gen.image_mask", "prompt.image_mask")
    has_image = renamed_attribute("gen.has_image", "prompt.has_image")
    image_token = renamed_attribute("gen.image_token", "prompt.image_token")
    pictures = renamed_attribute("gen.pictures", "prompt.pictures")
    rows_per_request = renamed_attribute("gen.rows_per_request", "prompt.rows_per_request")
    expansion = renamed_attribute("gen.expansion", "prompt.rows_per_request")
    config = renamed_attribute("gen.config", "model.config")
    tokenizer = renamed_attribute("gen.tokenizer", "model.tokenizer")
    depth = renamed_attribute("gen.depth", "model.depth")
    heads = renamed_attribute("gen.heads", "model.heads")
    tied = renamed_attribute("gen.tied", "model.tied_embeddings")
    measure = renamed_attribute("gen.measure", "services.measure")
    prefix = renamed_attribute("gen.prefix", "prompt_states")
