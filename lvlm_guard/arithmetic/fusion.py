"""Terms of a forward into one kernel call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lvlm_guard_kernels
import torch
from lvlm_guard_kernels import Combination
from torch import Tensor

from lvlm_guard.errors import InputError, KernelsRefused, NonFiniteLogits
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import Readout, readout_layers
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.terms import Bias, Contrast, LayerDivergence, Mix, Plausible, Restrict, Source, Term, Weight


def settle_environment() -> AbstractContextManager[None]:
    """Read once which implementation of the kernels is named, for every kernel that runs inside."""
    return lvlm_guard_kernels.settle_environment()


class ForwardStatistics:
    """Row statistics of one forward, each computed once, when it is first needed."""

    def __init__(self, gen: Generation) -> None:
        self._gen = gen
        self._results: dict[Any, Tensor] = {}
        self._measured: dict[Any, lvlm_guard_kernels.StatisticsOnDemand] = {}

    def logits(self, source: Source) -> Tensor:
        """Return raw logits `[rows, positions, vocab]` in fp32."""
        return self._read_logits(source).float()

    def log_sum_exp(self, source: Source) -> Tensor:
        """Return the logarithm of the sum of exponentials `[rows, positions]`."""
        return self._measure("log_sum_exp", source)

    def entropy(self, source: Source) -> Tensor:
        """Return the entropy in nats `[rows, positions]`."""
        return self._measure("entropy", source)

    def max_probability(self, source: Source) -> Tensor:
        """Return the probability of the best token `[rows, positions]`."""
        return self._measure("max_probability", source)

    def divergence(self, one: Source, other: Source) -> Tensor:
        """Return the Jensen-Shannon divergence in nats `[rows, positions]`."""
        with _translate_errors():
            if isinstance(one, Tensor) or isinstance(other, Tensor):
                return lvlm_guard_kernels.jensen_shannon(self._read_logits(one), self._read_logits(other))
            key = ("divergence", _get_key(one), _get_key(other))
            if key not in self._results:
                self._results[key] = lvlm_guard_kernels.jensen_shannon(*map(self._read_logits, (one, other)))
            return self._results[key]

    def layers(self, readout: Readout, mode: LayerDivergence = "jensen_shannon") -> Tensor:
        """Return the divergence of main from each layer `[layers, rows, positions]`."""
        key = ("layers", readout_layers(readout, self._gen.model.depth), readout.final_norm, mode)
        if key not in self._results:
            layers = self._gen.readouts(readout)
            with _translate_errors():
                self._results[key] = lvlm_guard_kernels.layer_divergence(self._gen.logits(), layers, mode)
        return self._results[key]

    def _read_logits(self, source: Source) -> Tensor:
        return source if isinstance(source, Tensor) else self._gen.logits(source)

    def _measure(self, name: str, source: Source) -> Tensor:
        with _translate_errors():
            if isinstance(source, Tensor):
                return lvlm_guard_kernels.StatisticsOnDemand(source)[name]
            key = _get_key(source)
            if key not in self._measured:
                self._measured[key] = lvlm_guard_kernels.StatisticsOnDemand(self._read_logits(source))
            return self._measured[key][name]


def combine(gen: Generation, terms: Iterable[Term]) -> Tensor | None:
    """Return combined logits `[rows, positions, vocab]` in fp32, or None when the terms leave main as it is.

    Raises:
        InputError: A weight, bias or restriction has a shape that does not fit, or a source is unknown.
        KernelsRefused: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    combination = build_combination(gen, terms)
    if combination is None:
        return None
    with _disable_autocast(gen.logits().device.type), _translate_errors():
        return lvlm_guard_kernels.combine(combination)


def _disable_autocast(device: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def draw(logits: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    """Draw tokens from logits `[rows, vocab]`; return them and their log-probabilities before temperature, `[rows]` each.

    Args:
        logits: After all processors.
        settings: Those of `lvlm_guard_kernels.select`.

    Raises:
        InputError: A setting is outside its range.
        NonFiniteLogits: A row holds NaN, or no token that may be drawn.
    """
    with _translate_errors():
        selection = lvlm_guard_kernels.select(Combination(logits), **settings)
        if bool(selection.broken.any()):
            raise NonFiniteLogits("A row of logits is NaN or all removed, so no token can be drawn from it.")
        chosen_logits = logits.gather(-1, selection.ids[:, None])[:, 0].float()
        return selection.ids, chosen_logits - lvlm_guard_kernels.log_sum_exp(logits)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise errors of the kernels as the library's own."""
    try:
        yield
    except (ValueError, lvlm_guard_kernels.KernelsUnavailable) as error:
        raise translate_error(error) from error


def translate_error(error: Exception) -> KernelsRefused | InputError:
    """Return an error of the kernels as one of the library's own."""
    if isinstance(error, lvlm_guard_kernels.KernelsUnavailable):
        return KernelsRefused(str(error))
    return InputError(f"The kernels cannot compute this: {error}")


def build_combination(gen: Generation, terms: Iterable[Term]) -> Combination | None:
    """Return what the terms of one forward add up to, or None when every term is neutral."""
    total = _Sum(gen)
    for term in terms:
        total.add(term)
    return total.build()


class _Sum:
    """Terms of one forward, added up for one call of a kernel.

    Args:
        gen: The generation whose forward it is.
    """

    def __init__(self, gen: Generation) -> None:
        self._gen = gen
        self._weights: dict[Any, float | Tensor] = {}  # of main and branches, by key
        self._sources: list[tuple[Tensor, float | Tensor]] = []  # logits that strategies made, and their weights
        self._beta = 0.0
        self._bias: Tensor | None = None
        self._keep: Tensor | None = None

    def add(self, term: Term) -> None:
        """Add one term."""
        if isinstance(term, Mix):
            self._add_source(term.source, _evaluate_weight(term.weight, self._gen))
        elif isinstance(term, Contrast):
            weight = _evaluate_weight(term.weight, self._gen)
            self._add_source(MAIN, weight)
            self._add_source(term.source, -weight)
        elif isinstance(term, Plausible):
            self._beta = max(self._beta, term.beta)
        elif isinstance(term, Restrict):
            keep = _place_over_vocabulary(term.keep.bool(), self._gen, "Restrict.keep")
            self._keep = keep if self._keep is None else self._keep & keep
        elif isinstance(term, Bias):
            values = _place_over_vocabulary(term.values.float(), self._gen, "Bias.values")
            self._bias = values if self._bias is None else self._bias + values
        else:
            raise InputError(f"terms() must yield Mix, Contrast, Plausible, Restrict or Bias, got {term!r}.")

    def _add_source(self, source: Source, weight: float | Tensor) -> None:
        if isinstance(source, Tensor):
            self._sources.append((_place_source(source, self._gen), weight))
        else:
            key = _get_key(source)
            self._weights[key] = self._weights[key] + weight if key in self._weights else weight

    def build(self) -> Combination | None:
        """Return the sum as one value, or None if it leaves main as it is."""
        branches = [key for key, weight in self._weights.items() if key != MAIN and not _is_zero(weight)]
        weighted = [*self._sources, *((self._gen.logits(key), self._weights[key]) for key in branches)]
        main_weight = 1.0 + self._weights.get(MAIN, 0.0)
        bounded = self._beta > 0.0 or self._bias is not None or self._keep is not None
        if not (weighted or bounded or isinstance(main_weight, Tensor) or main_weight != 1.0):
            return None
        sources, weights = [source for source, _ in weighted], [weight for _, weight in weighted]
        with _translate_errors():
            return Combination(self._gen.logits(), sources, weights, main_weight, self._beta, self._bias, self._keep)


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0.0


def _get_key(source: Source) -> Any:
    return getattr(source, "key", source)


def _evaluate_weight(weight: Weight, gen: Generation) -> float | Tensor:
    """Return a weight as a number, or as a tensor `[rows, positions]` on the device of the logits."""
    if callable(weight) and not isinstance(weight, Tensor):
        weight = weight(gen.statistics)
    if isinstance(weight, (int, float)):
        return float(weight)
    if not isinstance(weight, Tensor):
        raise InputError(f"A weight is a number, a tensor or a function that returns one, got {weight!r}.")
    shape = gen.logits().shape[:2]
    value = weight.to(gen.logits().device, torch.float32)
    value = value[:, None] if value.ndim == 1 else value
    if not _broadcasts(value.shape, shape):
        raise _describe_misfit("A weight", weight.shape, shape)
    return value.expand(shape)


def _place_source(source: Tensor, gen: Generation) -> Tensor:
    """Return logits that a strategy made, of main's shape, on main's device."""
    shape = gen.logits().shape
    if source.shape != shape:
        raise _describe_misfit("A source", source.shape, shape)
    return source.to(gen.logits().device)


def _place_over_vocabulary(value: Tensor, gen: Generation, name: str) -> Tensor:
    """Return a bias or a restriction that broadcasts to main, on main's device."""
    shape = gen.logits().shape
    placed = value.to(gen.logits().device)
    placed = placed[:, None] if placed.ndim == 2 else placed  # noqa: PLR2004 - [rows, vocab]
    if not _broadcasts(placed.shape, shape) or placed.shape[-1:] != shape[-1:]:
        raise _describe_misfit(name, value.shape, shape)
    return placed


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, length) for size, length in pairs)


def _describe_misfit(name: str, shape: Sequence[int], target: Sequence[int]) -> InputError:
    return InputError(
        f"{name} of shape {tuple(shape)} does not fit the logits {tuple(target)} [rows, positions, vocab]."
    )
