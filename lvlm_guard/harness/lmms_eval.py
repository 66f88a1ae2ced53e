"""lmms-eval's view of a guarded model: `python -m lmms_eval --model lvlm_guard --model_args pretrained=...,stack=...`."""

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
from lvlm_guard.harness.asked import Asked, unpack
from lvlm_guard.harness.settings import Settings, read_stack
from lvlm_guard.harness.tally import Tally


class GuardedModel(lmms):
    """A guarded model of lmms-eval's chat kind.

    Every run logs, beside tokens and time, the figures of `Tally.figures`; lmms-eval shows them in its throughput summary
    and writes them to its results, each name with `avg_` before it.

    Args:
        **arguments: Fields of `Settings`, from `--model_args`, `--batch_size` and `--device`.

    Raises:
        InputError: Arguments that cannot be used, or a model that cannot be loaded.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._settings = Settings.of(arguments)
        model, processor = loading.load(
            self._settings.pretrained, self._settings.device or _device_of_process(), self._settings.dtype
        )
        self._device = model.device
        stack = read_stack(self._settings.stack)
        self._guard = Guard(model, processor, stack, executor=self._settings.executor)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers results of several processes there."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Conversations per call of generate."""
        return self._settings.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """One `GenerationResult` per request, in their order.

        Raises:
            InputError: A request that is not of the chat kind, or has video or audio.
            Refused: What the stack cannot guard exactly.
        """
        answerer = Answerer(self._guard, self.batch_size, progress=self.rank == 0)
        with _warnings_shown():
            said = answerer.answer([self._unpacked(one) for one in requests])
        self._log(answerer.tally)
        return [GenerationResult(one.text, TokenCounts(one.prompt_tokens, one.tokens)) for one in said]

    def _unpacked(self, request: Any) -> Asked:
        length, blank_line = self._settings.max_new_tokens, self._settings.stop_at_blank_line
        return unpack(request.args, self.task_dict, length=length, blank_line=blank_line)

    def _log(self, tally: Tally) -> None:
        figures = {"total_requests": tally.requests, **tally.figures(self._device)}
        log_metrics(tally.seconds, tally.tokens, tally.speed, additional_metrics=figures)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002 - the base's signature
        """Refuse: a guard acts on generate, which this does not call."""
        raise ModeRefused(
            "Likelihoods are computed without generate, so no stack acts on them: choose tasks that generate."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002 - as above
        """Refuse: not supported."""
        raise ModeRefused("Tasks of several rounds are not supported: choose tasks with output_type generate_until.")

    def clean(self) -> None:
        """Give the model's memory back, as lmms-eval asks before judges run."""
        if hasattr(self, "_guard"):
            del self._guard
        super().clean()


def _device_of_process() -> str | None:
    """The GPU of this process where there are several processes; None leaves the choice to the loader."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Show the guard's warnings, each once: lmms-eval silences all warnings, and with them a stack that does nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", GuardWarning)
        yield
