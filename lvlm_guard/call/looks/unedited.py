"""Main's prompt without edits, which strategies run for its states: on a look it goes on from an unedited prefix."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.call.generation import create_generation
from lvlm_guard.call.looks.checking import TOLERANCE
from lvlm_guard.call.looks.memory import PrefixMemory
from lvlm_guard.call.looks.parts import is_ragged
from lvlm_guard.call.looks.preparation import with_mask
from lvlm_guard.call.looks.rows import continue_all, cut_rows, list_rows
from lvlm_guard.call.prompt_preparation import PromptPreparation
from lvlm_guard.errors import GuardError
from lvlm_guard.forward import PreparedDecode, capture_decode, prompt_states
from lvlm_guard.forward.caches.copying import is_plain
from lvlm_guard.forward.executors.batch_trial import FAILURES, measure_coarseness
from lvlm_guard.forward.prefixes import Prefix, capture_positions, continue_prefix, describe_kind, run_prefix
from lvlm_guard.protocols import Model
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.prompt import PromptStates

KEY = ("main", "unedited")
"""Under which a look keeps the prefix."""
ONE_ROW = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "max_new_tokens": 1}
_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = weakref.WeakKeyDictionary()
"""Whether states behind a prefix were those of whole prompts, by the module that decodes."""


def compute_states(memory: PrefixMemory, preparation: PromptPreparation, main: PreparedDecode) -> PromptStates | None:
    """Return the states of main's prompt behind an unedited prefix; None where it has to run whole.

    The first time, the prompt is run both ways, and a model where that makes a difference runs it whole from then on.

    Args:
        memory: The prefixes of the look.
        preparation: Prepares the prompts of the call.
        main: Main as prepared.
    """
    module = main.module
    assert isinstance(module, nn.Module)
    limit = anatomy.rotation_limit(main.module.config)
    if limit is not None and main.length > limit:
        return None
    verdicts = _verdicts.setdefault(module, {})
    kind = (describe_kind(module), is_ragged(preparation.request))
    if kind in verdicts:
        return _continue(memory, preparation) if verdicts[kind] else None
    expected = PromptPreparation.compute_states(preparation, None, main)
    try:
        actual = _continue(memory, preparation)
    except (GuardError, *FAILURES):  # the whole prompt has just run
        verdicts[kind] = False
        return expected
    if actual is not None:
        pairs = (actual.hidden, expected.hidden), (actual.logits, expected.logits)
        verdicts[kind] = all(_agree(*pair, main.module) for pair in pairs)
    return expected


def _agree(values: Tensor, expected: Tensor, module: Model) -> bool:
    allowed = TOLERANCE * measure_coarseness(module) * expected.abs().max()
    return values.shape == expected.shape and bool((values - expected).abs().max() <= allowed)


def _continue(memory: PrefixMemory, preparation: PromptPreparation) -> PromptStates | None:
    inputs = with_mask(preparation.request)
    if not continue_all(list_rows(inputs), memory.opening.ids):
        return None
    prefix = _find_prefix(memory, preparation)
    if is_ragged(preparation.request) and not is_plain(prefix.cache):
        return None
    prepared = capture_positions(preparation.generate, inputs, preparation.settings)
    return prompt_states.run_prompt(continue_prefix(prepared, prefix))


def _find_prefix(memory: PrefixMemory, preparation: PromptPreparation) -> Prefix:
    """Return the prefix, run at its first use."""
    with memory.lock:
        prefix = memory.find(KEY, ())
        if not isinstance(prefix, Prefix):
            inputs = {**memory.opening.inputs, **cut_rows(memory.opening.inputs, len(memory.opening.ids))}
            request = preparation.request
            row = Request(inputs, dict(ONE_ROW), request.config, request.processor)
            prefix = run_prefix(
                capture_decode(preparation.generate, inputs, ONE_ROW), MAIN, create_generation(row), None
            )
            memory.keep(KEY, (), prefix)
    return prefix
