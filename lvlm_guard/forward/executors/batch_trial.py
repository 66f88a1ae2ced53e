"""Small forwards that show whether a row is the same in every batch: quantisers, for example, may read a whole batch at once."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lvlm_guard import anatomy
from lvlm_guard.cache_names import name_of_cache
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward import model_inputs
from lvlm_guard.forward.executors.cache_lengths import LongCache
from lvlm_guard.forward.executors.executor import Run
from lvlm_guard.forward.installations import Hook, StandIn
from lvlm_guard.forward.interventions.compiled import run_uncompiled
from lvlm_guard.protocols import Model

ROWS, TOKENS, PADDING, GAP, VOCABULARY = 4, 6, 8, 7, 4096
SAME_SHAPE, OTHER_SHAPE = 2**-14, 2**-8
"""Rounding between batches of one shape (as a rule there is none), and of two, by the largest logit; in half precision more."""
HALVES = {torch.float16: 2**4, torch.bfloat16: 2**5}
"""How much more."""
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ModelRefused)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_answers_of_modules: weakref.WeakKeyDictionary[nn.Module, tuple[int, dict[bool, str | None]]] = (
    weakref.WeakKeyDictionary()
)


def measure_coarseness(module: Model) -> int:
    """Return how many times coarser a model rounds than in fp32, by its own dtype or that of autocast."""
    kind = module.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else module.dtype
    return HALVES.get(dtype, 1)


def try_batch(module: Model, forward: Run, example: Mapping[str, Any], *, is_padded: bool) -> str | None:
    """Why rows of one batch would not be what they are alone, or None. The answer is remembered until the model changes.

    Args:
        module: The module that decodes.
        forward: Its own forward.
        example: Arguments of a decode forward, which tell what the module takes.
        is_padded: Whether prompts are padded on the left, with masks and positions that say so.
    """
    assert isinstance(module, nn.Module)
    state = _describe(module)
    if module not in _answers_of_modules or _answers_of_modules[module][0] != state:
        _answers_of_modules[module] = state, {}
    answers = _answers_of_modules[module][1]
    if is_padded not in answers:
        trial = _Trial(module, forward, example)
        answers[is_padded] = trial.find_fault(is_padded=is_padded)
    return answers[is_padded]


def _describe(module: nn.Module) -> int:
    """A number that changes when layers, weights of another kind, hooks or forwards of others are put into a module."""
    parts = anatomy.list_parts(module)
    kinds = [(type(part), _name_forward(part), *(_count_hooks(part, name) for name in HOOKS)) for part in parts]
    weights = (weight for part in parts for weight in part._parameters.values() if weight is not None)  # noqa: SLF001 - torch walks all parts again
    return hash((*kinds, *((type(weight), weight.dtype) for weight in weights)))


def _name_forward(part: nn.Module) -> int:
    forward = vars(part).get("forward")
    return 0 if forward is None or isinstance(forward, StandIn) else id(forward)


def _count_hooks(part: nn.Module, name: str) -> int:
    hooks = vars(part)[name]
    return sum(not isinstance(hook, Hook) for hook in hooks.values()) if hooks else 0


class _Trial:
    """One model, tried on a few tokens without a cache.

    Args:
        module: The module that decodes.
        forward: Its own forward.
        example: Arguments of a decode forward.
    """

    def __init__(self, module: nn.Module, forward: Run, example: Mapping[str, Any]) -> None:
        self._module: Any = module
        self._forward = forward
        self._example = example

    def find_fault(self, *, is_padded: bool) -> str | None:
        """What would make one batch inexact, or None."""
        try:
            with torch.no_grad(), run_uncompiled(), anatomy.kept_rope(self._module):
                return self._find_fault(is_padded=is_padded)
        except FAILURES as error:
            return f"the model cannot be tried on a small batch ({type(error).__name__})"

    def _find_fault(self, *, is_padded: bool) -> str | None:
        tokens = self._draw_tokens()
        row = tokens[:1].expand(ROWS, -1)
        tokens[-1] = tokens[0]  # the last row, too: experts with room for so many tokens take the first ones
        alone, in_batch = self._run(row), self._run(tokens)
        if not _agree(alone[[0, -1]], in_batch[[0, -1]], SAME_SHAPE):
            return "a row depends on the batch it is in, as where activations are quantised by the batch"
        return self._find_padding_fault(row, alone) if is_padded else None

    def _find_padding_fault(self, row: Tensor, alone: Tensor) -> str | None:
        """Masked tokens in front of a row must not change it, and its positions must be those it is told."""
        padding = self._draw_tokens(seed=1, length=2 * PADDING)[:1].expand(ROWS, -1)
        padded = self._run(torch.cat([padding[:, :PADDING], row], dim=1), PADDING)
        moved = self._run(torch.cat([padding[:, PADDING:], row], dim=1), PADDING, GAP)
        if not _agree(padded[0], moved[0], SAME_SHAPE) or not _agree(alone[0], padded[0], OTHER_SHAPE):
            return "padding in front of a prompt changes it"
        if torch.equal(padded[1], moved[1]):
            return "the model takes position ids and does not use them"
        return None if self._ignores_length(row) else "layers count positions by the length of the cache"

    def _ignores_length(self, row: Tensor) -> bool:
        """Whether layers do the same where their cache says that it is long."""
        short, long = (LongCache(self._module, row.shape[1]) for _ in range(2))
        plain = self._run(row, cache=short)
        with long.in_layers():
            misled = self._run(row, cache=long)
        return _agree(plain, misled, SAME_SHAPE)

    def _run(self, ids: Tensor, padding: int = 0, gap: int = 0, cache: LongCache | None = None) -> Tensor:
        """Logits `[rows, vocab]` of the last token; the positions of row 1 leave `gap` out before it."""
        positions = pad(torch.arange(ids.shape[1] - padding, device=ids.device), (padding, 0)).repeat(len(ids), 1)
        positions[1, -1] += gap
        inputs = {"input_ids": ids, "attention_mask": pad(torch.ones_like(ids[:, padding:]), (padding, 0))}
        if isinstance(example := self._example.get("position_ids"), Tensor):
            inputs["position_ids"] = positions.expand(*example.shape[:-2], *positions.shape)
        for name in model_inputs.TOKEN_TYPES:
            if isinstance(self._example.get(name), Tensor):
                inputs[name] = torch.zeros_like(ids)
        flags = {name: value for name, value in self._example.items() if isinstance(value, bool)}
        cached = {} if cache is None else {name_of_cache(self._example): cache.cache}
        output = self._forward(**inputs, **cached, **{**flags, "use_cache": bool(cached), "return_dict": True})
        logits: Tensor = output.logits[:, -1]
        return logits

    def _draw_tokens(self, seed: int = 0, length: int = TOKENS) -> Tensor:
        """Ids of plain tokens `[ROWS, length]`."""
        text = self._module.config.get_text_config(decoder=True)
        named = {**self._module.config.to_dict(), **text.to_dict()}
        special = {value for name, value in named.items() if name.endswith(("token_id", "token_index"))}
        plain = [token for token in range(min(text.vocab_size, VOCABULARY)) if token not in special]
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = torch.tensor(plain, device="cpu")[
            torch.randint(len(plain), (ROWS, length), generator=generator, device="cpu")
        ]
        return drawn.to(self._example["input_ids"].device)


def _agree(logits: Tensor, other_logits: Tensor, rounding: float) -> bool:
    """Whether two rows of logits differ by rounding alone; NaN agrees with nothing."""
    allowed = rounding * HALVES.get(logits.dtype, 1) * logits.float().abs().max()
    return bool((logits.float() - other_logits.float()).abs().max() <= allowed)
