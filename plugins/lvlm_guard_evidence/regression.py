"""Weighted logistic regression on a few features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

RIDGE = 1e-3
"""Weight of the square of each coefficient, but for the constant."""
STEPS = 200


def fit_binary(features: Tensor, truth: Tensor, weights: Tensor, *, has_constant: bool = True) -> Tensor:
    """Return the coefficients of a logistic regression, that of the constant last, fp64 `[features (+ 1)]`.

    Args:
        features: `[examples, features]`.
        truth: 1 or 0 `[examples]`.
        weights: `[examples]`.
        has_constant: Whether there is a constant.
    """
    count = features.shape[1]
    columns = torch.cat([features, torch.ones(len(features), 1)], dim=1) if has_constant else features
    signed = columns.double() * (2 * truth.double() - 1)[:, None]
    shares = weights.double() / weights.double().sum()
    with torch.enable_grad():
        coefficients = torch.zeros(columns.shape[1], dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([coefficients], max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def compute() -> Tensor:
            solver.zero_grad()
            ridge = RIDGE * coefficients[:count].square().sum()
            loss = ridge - (shares * logsigmoid(signed @ coefficients)).sum()
            torch.autograd.backward(loss)
            return loss

        solver.step(compute)  # type: ignore[no-untyped-call]
    return coefficients.detach()
