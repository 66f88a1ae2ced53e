"""Terms of a forward into one kernel call; the only file that imports the kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import lvlm_guard_kernels as kernels
import torch
from torch import Tensor

from lvlm_guard.errors import InputError, KernelsRefused, NonFiniteLogits
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import Readout, readout_layers
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.terms import Bias, Contrast, LayerDivergence, Mix, Plausible, Restrict, Source, Term, Weight


class ForwardStatistics:
    """Row statistics of one forward, computed when asked for and once."""

    def __init__(self, gen: Generation) -> None:
        self._gen = gen
        self._known: dict[Any, Tensor] = {}

    def logits(self, source: Source) -> Tensor:
        """Raw logits `[rows, positions, vocab]` in fp32."""
        return self._raw(source).float()

    def log_sum_exp(self, source: Source) -> Tensor:
        """Logarithm of the sum of exponentials `[rows, positions]`."""
        return self._once("log_sum_exp", kernels.log_sum_exp, source)

    def entropy(self, source: Source) -> Tensor:
        """Entropy in nats `[rows, positions]`."""
        return self._once("entropy", kernels.entropy, source)

    def max_probability(self, source: Source) -> Tensor:
        """Probability of the best token `[rows, positions]`."""
        return self._once("max_probability", kernels.max_probability, source)

    def divergence(self, one: Source, other: Source) -> Tensor:
        """Jensen-Shannon divergence in nats `[rows, positions]`."""
        return self._once("divergence", kernels.jensen_shannon, one, other)

    def layers(self, readout: Readout, mode: LayerDivergence = "jensen_shannon") -> Tensor:
        """Divergence of main from each layer `[layers, rows, positions]`."""
        key = ("layers", readout_layers(readout, self._gen.depth), readout.final_norm, mode)
        if key not in self._known:
            layers = self._gen.readouts(readout)
            with _as_errors():
                self._known[key] = kernels.layer_divergence(self._gen.logits(), layers, mode)
        return self._known[key]

    def _raw(self, source: Source) -> Tensor:
        return source if isinstance(source, Tensor) else self._gen.logits(source)

    def _once(self, name: str, function: Any, *sources: Source) -> Tensor:
        with _as_errors():
            if any(isinstance(source, Tensor) for source in sources):
                return function(*map(self._raw, sources))
            key = (name, *map(_key, sources))
            if key not in self._known:
                self._known[key] = function(*map(self._raw, sources))
            return self._known[key]


@dataclass
class Sum:
    """The terms of one forward, gathered for one call of `combine`."""

    main_weight: float | Tensor = 1.0
    sources: list[Tensor] = field(default_factory=list)
    weights: list[float | Tensor] = field(default_factory=list)
    beta: float = 0.0
    bias: Tensor | None = None
    keep: Tensor | None = None


def combine(gen: Generation, terms: Iterable[Term]) -> Tensor | None:
    """Combined logits `[rows, positions, vocab]` in fp32, or None when the terms leave main as it is.

    Raises:
        InputError: A weight, bias or restriction has a shape that does not fit, or a source is unknown.
        KernelsRefused: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    gathered = gather(gen, terms)
    if gathered is None:
        return None
    with _without_autocast(gen.logits().device.type), _as_errors():
        return kernels.combine(
            gen.logits(),
            gathered.sources,
            gathered.weights,
            main_weight=gathered.main_weight,
            beta=gathered.beta,
            bias=gathered.bias,
            keep=gathered.keep,
        )


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def draw(logits: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    """Tokens drawn from logits `[rows, vocab]`, and their log-probabilities before temperature, `[rows]` each.

    Args:
        logits: As they are to be drawn from.
        settings: Those of `lvlm_guard_kernels.select`.

    Raises:
        NonFiniteLogits: A row holds NaN, or nothing that may be drawn.
    """
    with _as_errors():
        drawn = kernels.select(logits, **settings)
        if bool(drawn.broken.any()):
            raise NonFiniteLogits("A row of logits is NaN or all removed, so no token can be drawn from it.")
        chosen = logits.gather(-1, drawn.ids[:, None])[:, 0].float()
        return drawn.ids, chosen - kernels.log_sum_exp(logits)


@contextmanager
def _as_errors() -> Iterator[None]:
    """Errors of the kernel room in the library's own tree."""
    try:
        yield
    except kernels.KernelsUnavailable as error:
        raise KernelsRefused(str(error)) from error
    except ValueError as error:
        raise InputError(f"Row statistics cannot be computed: {error}") from error


def gather(gen: Generation, terms: Iterable[Term]) -> Sum | None:
    """Gather terms into one weighted sum; None when every term is neutral."""
    total = Sum()
    weights: dict[Any, float | Tensor] = {}
    for term in terms:
        if isinstance(term, (Mix, Contrast)):
            weight = _weight(term.weight, gen)
            contrast = isinstance(term, Contrast)
            if contrast:
                _add(weights, MAIN, weight)
            if isinstance(term.source, Tensor):
                total.sources.append(_of_forward(term.source, gen))
                total.weights.append(-weight if contrast else weight)
            else:
                _add(weights, _key(term.source), -weight if contrast else weight)
        else:
            _bound(total, term, gen)
    total.main_weight = 1.0 + weights.pop(MAIN, 0.0)
    for key, weight in weights.items():
        if isinstance(weight, Tensor) or weight != 0.0:
            total.sources.append(gen.logits(key))
            total.weights.append(weight)
    return None if _is_neutral(total) else total


def _of_forward(source: Tensor, gen: Generation) -> Tensor:
    """Logits that a strategy made itself, of main's shape."""
    shape = gen.logits().shape
    return source.to(gen.logits().device) if source.shape == shape else _misfit("A source", source.shape, shape)


def _add(weights: dict[Any, float | Tensor], key: Any, weight: float | Tensor) -> None:
    weights[key] = weights[key] + weight if key in weights else weight


def _bound(total: Sum, term: Term, gen: Generation) -> None:
    if isinstance(term, Plausible):
        total.beta = max(total.beta, term.beta)
    elif isinstance(term, Restrict):
        keep = _over_vocabulary(term.keep.bool(), gen, "Restrict.keep")
        total.keep = keep if total.keep is None else total.keep & keep
    elif isinstance(term, Bias):
        values = _over_vocabulary(term.values.float(), gen, "Bias.values")
        total.bias = values if total.bias is None else total.bias + values
    else:
        raise InputError(f"terms() must yield Mix, Contrast, Plausible, Restrict or Bias, got {term!r}.")


def _is_neutral(total: Sum) -> bool:
    weighted = isinstance(total.main_weight, Tensor) or total.main_weight != 1.0 or bool(total.sources)
    return not (weighted or total.beta > 0.0 or total.bias is not None or total.keep is not None)


def _key(source: Source) -> Any:
    return getattr(source, "key", source)


def _weight(weight: Weight, gen: Generation) -> float | Tensor:
    if callable(weight) and not isinstance(weight, Tensor):
        weight = weight(gen.statistics)
    if isinstance(weight, (int, float)):
        return float(weight)
    if not isinstance(weight, Tensor):
        raise InputError(f"A weight is a number, a tensor or a function that returns one, got {weight!r}.")
    shape = gen.logits().shape[:2]
    value = weight.to(gen.logits().device, torch.float32)
    value = value[:, None] if value.ndim == 1 else value
    return value.expand(shape) if _fits(value.shape, shape) else _misfit("A weight", weight.shape, shape)


def _over_vocabulary(value: Tensor, gen: Generation, what: str) -> Tensor:
    shape = gen.logits().shape
    placed = value.to(gen.logits().device)
    placed = placed[:, None] if placed.ndim == 2 else placed  # noqa: PLR2004 - [rows, vocab]
    return placed if _fits(placed.shape, shape) and placed.shape[-1] == shape[-1] else _misfit(what, value.shape, shape)


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in pairs)


def _misfit(what: str, shape: Sequence[int], target: Sequence[int]) -> Tensor:
    raise InputError(
        f"{what} of shape {tuple(shape)} does not fit the logits {tuple(target)} [rows, positions, vocab]."
    )
