"""Hidden states of answers that follow the same picture, which runs once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.attachments import plain_generate
from lvlm_guard.call.generation import create_generation
from lvlm_guard.call.looks.opening import open_inputs
from lvlm_guard.call.looks.rows import cut_rows
from lvlm_guard.errors import GuardError
from lvlm_guard.fitting.states import compute_hidden_states, record_outputs
from lvlm_guard.forward import PreparedDecode, capture_decode, run_uncompiled
from lvlm_guard.forward.executors.batch_trial import FAILURES, measure_coarseness
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.prefixes import Prefix, capture_positions, continue_prefix, run_prefix
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN

ONE_ROW = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "max_new_tokens": 1}
TOLERANCE = 2**-10
"""Rounding between a whole prompt and one in two parts, by the largest state; in half precision more."""


class AnswerStates:
    """Computes hidden states of answers, one after the other.

    What comes before the questions, picture and all, runs once for answers in a row that follow the same picture. The first two
    are computed whole as well; on a model where that makes a difference, all are.

    Args:
        model: The model.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._processor = processor
        self._prefix: tuple[Mapping[str, Any], Prefix] | None = None
        self._trials = 2  # the second goes on from a prefix that was used before
        self._shares = True

    def compute(self, batch: Mapping[str, Any], positions: int) -> Tensor:
        """Return the residual stream after each decoder layer `[layers, positions, hidden]` at the last positions, in fp32.

        Args:
            batch: Model inputs of one row, without padding.
            positions: How many; all of them behind the last picture.
        """
        if self._shares and not self._trials:
            return self._continue(batch)[:, -positions:]
        expected = compute_hidden_states(self._model, batch)[:, -positions:]
        if self._shares:
            self._trials -= 1
            self._shares = self._agrees(batch, expected)
        return expected

    def _agrees(self, batch: Mapping[str, Any], expected: Tensor) -> bool:
        """Whether states behind a prefix are those of the whole row; where the model cannot go on from one, they are not."""
        try:
            actual = self._continue(batch)[:, -expected.shape[1] :]
        except (GuardError, *FAILURES):  # whole rows have just run
            return False
        allowed = TOLERANCE * measure_coarseness(self._model) * expected.abs().max()
        return actual.shape == expected.shape and bool((actual - expected).abs().max() <= allowed)

    def _continue(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the states behind the prefix `[layers, positions, hidden]`."""
        prepared = capture_positions(plain_generate(self._model), batch, ONE_ROW)
        prepared = continue_prefix(prepared, self._find_prefix(batch))
        with record_outputs(anatomy.decoder_layers(self._model)) as outputs:
            BranchRun(prepared).feed(prepared.module, _no_tokens(prepared), 0, 1, first=True)
        return torch.stack([output[0] for output in outputs])

    def _find_prefix(self, batch: Mapping[str, Any]) -> Prefix:
        """Return the beginning of a row up to the end of its last picture, run at its first use."""
        request = Request(dict(batch), {}, self._model.config, self._processor)
        opening = open_inputs(request)
        inputs = {**opening.inputs, **cut_rows(opening.inputs, len(opening.ids))}
        if self._prefix is None or not _is_same(self._prefix[0], inputs):
            prepared = capture_decode(plain_generate(self._model), inputs, ONE_ROW)
            with run_uncompiled():
                self._prefix = inputs, run_prefix(prepared, MAIN, create_generation(request), None)
        return self._prefix[1]


def _no_tokens(prepared: PreparedDecode) -> Tensor:
    return prepared.input_ids[:, :0]


def _is_same(inputs: Mapping[str, Any], second_inputs: Mapping[str, Any]) -> bool:
    """Whether two sets of model inputs hold the same tensors."""
    tensors = {name for name, value in (*inputs.items(), *second_inputs.items()) if isinstance(value, Tensor)}
    return all(
        isinstance(inputs.get(name), Tensor)
        and isinstance(second_inputs.get(name), Tensor)
        and torch.equal(inputs[name], second_inputs[name])
        for name in tensors
    )
