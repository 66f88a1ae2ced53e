"""The terms of one forward, checked and added up; what does not fit is named with its strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.arithmetic import fusion
from lvlm_guard.errors import InputError, PluginRejected, quote
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.terms import Bias, Contrast, Mix, Plausible, Restrict, Term


def combine_terms(gen: Generation, terms: Mapping[str, Sequence[Term]]) -> Tensor | None:
    """Return combined logits `[rows, positions, vocab]`, or None when the terms leave main as it is.

    Raises:
        PluginRejected: Terms of a strategy have a source or a shape that does not fit.
    """
    try:
        return fusion.combine(gen, [term for values in terms.values() for term in values])
    except InputError:
        blame_misfit(gen, terms)
        raise


def blame_misfit(gen: Generation, terms: Mapping[str, Sequence[Term]]) -> None:
    """Raise for the first strategy whose terms alone cannot be added up.

    Raises:
        PluginRejected: Names the strategy.
    """
    for name, values in terms.items():
        _blame(gen, name, values)


def _blame(gen: Generation, name: str, terms: Sequence[Term]) -> None:
    """Raise if the terms of this strategy alone cannot be added up."""
    try:
        fusion.build_combination(gen, terms)
    except InputError as error:
        raise PluginRejected(f"{name}.terms: {error}") from error


def check_term(term: Any) -> str | None:
    """Return what is wrong with the fields of a term, before any tensor is read; None where nothing is."""
    if isinstance(term, (Mix, Contrast)):
        return _check_weight(term.weight) or _check_source(term.source)
    if isinstance(term, Plausible):
        return None if _is_finite(term.beta) else f"beta must be a number in [0, 1], got {quote(term.beta)}."
    assert isinstance(term, (Restrict, Bias))
    name, values = ("keep", term.keep) if isinstance(term, Restrict) else ("values", term.values)
    return _check_tensor(name, values)


def _check_weight(weight: Any) -> str | None:
    if isinstance(weight, Tensor):
        return _check_tensor("weight", weight)
    if callable(weight) or _is_finite(weight):
        return None
    return f"weight must be a finite number, a tensor or a function of statistics, got {quote(weight)}."


def _check_source(source: Any) -> str | None:
    if isinstance(source, Tensor):
        return _check_tensor("source", source)
    key = getattr(source, "key", source)
    try:
        hash(key)
    except TypeError:
        return f"source must be 'main', a branch, its key or logits, got {quote(source)}."
    return None


def _check_tensor(name: str, tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name} must be a tensor, got {quote(tensor)}."
    if tensor.is_complex() or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return f"{name} must be a plain tensor of real numbers, got {tensor.dtype} on {tensor.device}."
    return None


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < math.inf
