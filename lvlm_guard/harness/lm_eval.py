"""A guarded model for lm-evaluation-harness."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from lm_eval.models.hf_vlms import HFMultimodalLM
from torch import Tensor

from lvlm_guard.bench.scoring.margins import new_tokens
from lvlm_guard.errors import ModeRefused, ProcessorNeeded, Refused
from lvlm_guard.guard import Guard
from lvlm_guard.harness.answering import find_end_tokens
from lvlm_guard.harness.run_cost import RunCost


class GuardedLM(HFMultimodalLM):
    """The harness's own multimodal model, with every generation going through a guard.

    ```python
    simple_evaluate(model=GuardedLM(guard, batch_size=8), tasks=[...], apply_chat_template=True)
    ```

    The results contain the stack and the cost of the run under `config`, `lvlm_guard`. Likelihoods are refused: the harness
    computes them without generate, so they would come from the plain model.

    Args:
        guard: The guard; it needs a processor.
        **options: Options of `HFMultimodalLM`, except the model and its tokenizer.

    Raises:
        ProcessorNeeded: The guard has no processor.
    """

    def __init__(self, guard: Guard, **options: Any) -> None:
        if guard.processor is None:
            raise ProcessorNeeded("GuardedLM needs the processor: Guard(model, processor).")
        self._guard = guard
        self._cost = RunCost()
        super().__init__(pretrained=guard.model, **options)

    def _create_tokenizer(self, *_: Any, **__: Any) -> None:
        self.processor = self._guard.processor
        self.tokenizer = self._guard.processor.tokenizer

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return one answer per request, in the same order.

        Raises:
            Refused: The stack cannot guard a call exactly, or the harness bypassed the guard.
        """
        calls_before = self._cost.calls
        with self._guard.attached():
            answers: list[str] = super().generate_until(list(requests), disable_tqdm=disable_tqdm)
        if answers and self._cost.calls == calls_before:
            raise Refused("lm-eval generated answers in a way this adapter does not know: use version 0.4.13.")
        return answers

    def _model_multimodal_generate(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._generate_and_count(super()._model_multimodal_generate, inputs, *args, **kwargs)

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._generate_and_count(super()._model_generate, context, *args, **kwargs)

    def _generate_and_count(self, generate: Callable[..., Any], prompt: Any, *args: Any, **kwargs: Any) -> Tensor:
        ids = prompt if isinstance(prompt, Tensor) else prompt["input_ids"]
        started = time.perf_counter()
        output: Tensor = generate(prompt, *args, **kwargs)
        generated = output[:, self._guard.report.answer_start :]
        counted = generated.cpu()
        seconds = time.perf_counter() - started
        tokens = sum(new_tokens(counted, *find_end_tokens(self._guard)))
        self._cost.add(self._guard.report, requests=len(counted), tokens=tokens, seconds=seconds)
        return output if self._guard.report.answer_start == ids.shape[1] else _put_behind(ids, generated)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:  # noqa: ARG002 - signature of the base
        """Refuse: a guard acts on generate, and likelihoods do not call it."""
        raise ModeRefused(
            "Likelihoods are computed without generate, so a stack cannot affect them: choose tasks that generate."
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse for the same reason as `loglikelihood`."""
        self.loglikelihood(requests, disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes under `config` of the results: its own figures, the stack, and the cost of the run."""
        guard_info = {**self._guard.stack.to_dict(), **self._cost.to_dict(self._guard.model.device)}
        return {**super().get_model_info(), "lvlm_guard": guard_info}


def _put_behind(prompts: Tensor, generated: Tensor) -> Tensor:
    """Return answers `[rows, tokens]` behind the prompts `[rows, length]`, which the harness cuts off whatever generate returned."""
    return torch.cat([prompts.to(generated), generated], dim=1)
