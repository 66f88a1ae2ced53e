"""A guarded model for lmms-eval: `python -m lmms_eval --model lvlm_guard --model_args pretrained=...,stack=...`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from lvlm_guard import loading
from lvlm_guard.errors import GuardWarning, ModeRefused
from lvlm_guard.guard import Guard
from lvlm_guard.harness.answering import Answerer
from lvlm_guard.harness.questions import HarnessQuestion, read_request
from lvlm_guard.harness.run_cost import RunCost
from lvlm_guard.harness.settings import Settings, read_stack


class GuardedModel(lmms):
    """A guarded model of lmms-eval's chat kind.

    In addition to tokens and time, every run logs the figures of `RunCost.compute_figures`. lmms-eval shows them in its
    throughput summary and writes them to its results, with `avg_` in front of each name.

    Args:
        **arguments: Fields of `Settings`, from `--model_args`, `--batch_size` and `--device`.

    Raises:
        InputError: The arguments cannot be used, or the model cannot be loaded.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._settings = Settings.from_arguments(arguments)
        model, processor = loading.load(
            self._settings.pretrained, self._settings.device or _find_process_device(), self._settings.dtype
        )
        self._device = model.device
        stack = read_stack(self._settings.stack)
        self._guard = Guard(model, processor, stack, executor=self._settings.executor)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Device of the model, where lmms-eval gathers the results of several processes."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Largest number of questions per call of generate."""
        return self._settings.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Return one `GenerationResult` per request, in the same order.

        Raises:
            InputError: A request that is not of the chat kind, or has video or audio.
            Refused: The stack cannot guard a call exactly.
        """
        answerer = Answerer(self._guard, self.batch_size, progress=self.rank == 0, looks=self._settings.looks)
        with _show_warnings():
            answers = answerer.answer([self._read_request(request) for request in requests])
        self._log(answerer.cost)
        return [GenerationResult(answer.text, TokenCounts(answer.prompt_tokens, answer.tokens)) for answer in answers]

    def _read_request(self, request: Any) -> HarnessQuestion:
        length, blank_line = self._settings.max_new_tokens, self._settings.stop_at_blank_line
        return read_request(request.args, self.task_dict, length=length, blank_line=blank_line)

    def _log(self, cost: RunCost) -> None:
        figures = {"total_requests": cost.requests, **cost.compute_figures(self._device)}
        log_metrics(cost.seconds, cost.tokens, cost.tokens_per_second, additional_metrics=figures)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002 - signature of the base
        """Refuse: a guard acts on generate, and likelihoods do not call it."""
        raise ModeRefused(
            "Likelihoods are computed without generate, so a stack cannot affect them: choose tasks that generate."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002 - signature of the base
        """Refuse: several rounds are not supported."""
        raise ModeRefused("Tasks with several rounds are not supported: choose tasks with output_type generate_until.")

    def clean(self) -> None:
        """Release the model's memory; lmms-eval calls this before it runs judges."""
        if hasattr(self, "_guard"):
            del self._guard
        super().clean()


def _find_process_device() -> str | None:
    """Return the GPU of this process if there are several processes; None leaves the choice to the loader."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


@contextmanager
def _show_warnings() -> Iterator[None]:
    """Show each of the guard's warnings once: lmms-eval silences all warnings, which would hide a stack that does nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", GuardWarning)
        yield
