"""The kernels as operators of torch, so that a compiler sees one node and fake tensors need no kernel.

`torch.compile` and fake tensors come here by themselves; elsewhere the kernels are called directly, which costs less.
Nothing is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # torch has no public name for it

from lvlm_guard_kernels.combination import Combination

NAMESPACE = "lvlm_guard_kernels"
COMBINATION = (
    "Tensor main, Tensor[] sources, float[] weights, Tensor?[] weight_tensors, float beta, Tensor? bias, Tensor? keep"
)
"""The parts of a combination; weights begin with main's, and a tensor counts instead of the number in its place."""


def is_traced(*tensors: Tensor) -> bool:
    """Return whether a compiler looks on, or tensors are fake, so that operators stand for kernels."""
    return torch.compiler.is_compiling() or any(isinstance(tensor, FakeTensor) for tensor in tensors)


def flatten_combination(combination: Combination) -> tuple[Any, ...]:
    """Return a combination as arguments of an operator."""
    weights = combination.main_weight, *combination.weights
    return (
        combination.main,
        list(combination.sources),
        [1.0 if isinstance(weight, Tensor) else float(weight) for weight in weights],
        [weight if isinstance(weight, Tensor) else None for weight in weights],
        float(combination.beta),
        combination.bias,
        combination.keep,
    )


def build_combination(
    main: Tensor,
    sources: Sequence[Tensor],
    weights: Sequence[float],
    weight_tensors: Sequence[Tensor | None],
    beta: float,
    bias: Tensor | None,
    keep: Tensor | None,
) -> Combination:
    """Return the combination of an operator's arguments."""
    pairs = zip(weights, weight_tensors, strict=True)
    main_weight, *source_weights = (number if tensor is None else tensor for number, tensor in pairs)
    return Combination(main, sources, source_weights, main_weight, beta, bias, keep)


def define(name: str, schema: str, compute: Callable[..., Any], describe: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator without a gradient, and return it.

    Args:
        name: Its name in torch's namespace of the kernels.
        schema: Parameters and results in torch's notation.
        compute: Takes real tensors.
        describe: Takes fake tensors and returns results without values.
    """
    operator = torch.library.custom_op(f"{NAMESPACE}::{name}", compute, mutates_args=(), schema=schema)
    operator.register_fake(describe)
    operator.register_autograd(_refuse_gradient, setup_context=_mark_constant)
    operators: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name)
    return operators


def _mark_constant(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del inputs
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _refuse_gradient(*arguments: Any) -> Any:
    del arguments
    raise RuntimeError("The kernels have no gradient.")  # not reached: no result asks for one
