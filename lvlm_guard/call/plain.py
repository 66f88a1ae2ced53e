"""Plain generate, and where its answers begin: it has no decode of ours that would tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.cache_names import CACHE_NAMES
from lvlm_guard.call.provenance import describe_origin
from lvlm_guard.call.report import Report
from lvlm_guard.errors import GuardError
from lvlm_guard.forward import capture_decode
from lvlm_guard.outputs import holds_sequences, measure_prompt, sequences
from lvlm_guard.request.requests import split_arguments

FIRST_LOGITS = {
    "max_new_tokens": 1,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": True,
    "output_logits": True,
}
"""Settings of generate under which it gives the logits of the first token, whatever the defaults of the model."""


def run_plain(model: Any, plain: Any, arguments: Mapping[str, Any]) -> tuple[Any, Report | None]:
    """Run plain generate; the report says that it ran, and is None where it returned something without sequences."""
    started = time.perf_counter()
    output = plain(**arguments)
    if not holds_sequences(output):
        return output, None
    seconds, ids = time.perf_counter() - started, sequences(output)
    start = find_answers(model, plain, arguments, ids)
    prompt, origin = (
        split_arguments(arguments, anatomy.main_input(model))[0].get("input_ids"),
        describe_origin(model.config),
    )
    return output, Report.of_plain(ids, prompt, seconds, origin, start)


def find_start(output: Any, report: Report | None) -> int:
    """Return where answers begin, in what must hold token ids."""
    ids = sequences(output)
    return ids.shape[1] if report is None else report.answer_start


def find_answers(model: Any, generate: Callable[..., Any], arguments: Mapping[str, Any], ids: Tensor) -> int:
    """Return where in the rows `[rows, length]` of plain generate the answers begin.

    Args:
        model: The model.
        generate: Its own generate, unguarded.
        arguments: What generate was called with, by name.
        ids: What it returned.
    """
    inputs, _ = split_arguments(arguments, anatomy.main_input(model))
    start = measure_prompt(ids, _list_prompts(model, inputs))
    if start is None and "inputs_embeds" not in inputs:
        start = measure_prompt(ids, _prepare_prompt(model, generate, arguments))
    return start or 0


def _list_prompts(model: Any, inputs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield what an output may begin with: the prompt, or that of the decoder of an encoder-decoder."""
    if not getattr(model.config, "is_encoder_decoder", False):
        yield from (inputs[name] for name in ("input_ids",) if isinstance(inputs.get(name), Tensor))
        return
    settings = getattr(model, "generation_config", None)
    starts = (getattr(settings, name, None) for name in ("decoder_start_token_id", "bos_token_id"))
    first = next((torch.tensor([[token]]) for token in starts if isinstance(token, int)), None)
    decoder_prompt = inputs.get("decoder_input_ids")
    if isinstance(decoder_prompt, Tensor):
        yield decoder_prompt
        if first is not None:
            yield torch.cat([first.to(decoder_prompt).expand(len(decoder_prompt), 1), decoder_prompt], dim=1)
    elif first is not None:
        yield first


def _prepare_prompt(model: Any, generate: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the prompt of generate's loop, which some classes cut, lengthen or begin otherwise.

    A class whose generate cannot be prepared apart from its loop cannot be guarded, and is left to return what it likes.
    """
    inputs, settings = split_arguments(arguments, anatomy.main_input(model))
    without_cache = {name: value for name, value in inputs.items() if name not in CACHE_NAMES}
    try:
        prepared = capture_decode(generate, without_cache, settings)
    except (GuardError, TypeError, ValueError, RuntimeError):
        return
    yield prepared.input_ids[:: prepared.rows_per_request]
