"""Weighted logistic regression on a few features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 1e-3
"""Weight of the square of each coefficient, but for the constant."""
STEPS = 200


def fit_choice(features: Sequence[Tensor], truths: Sequence[int], weights: Tensor, free: int | None = None) -> Tensor:
    """Return coefficients under which the true ones of several options score highest, fp64 `[features]`.

    Options of a question score `features @ coefficients`, and the true one is drawn by their softmax. With two options whose
    features are each other's negatives this is logistic regression.

    Args:
        features: Of each question `[options, features]`.
        truths: Which option is true.
        weights: Of each question `[questions]`.
        free: How many of the features, the first ones, are shrunk; all where None.
    """
    count, most = len(features), max(len(each) for each in features)
    padded = torch.zeros(count, most, features[0].shape[1], dtype=torch.float64)
    absent = torch.ones(count, most, dtype=torch.bool)
    for number, each in enumerate(features):
        padded[number, : len(each)], absent[number, : len(each)] = each.double(), False
    truth, shares = torch.tensor(truths), weights.double() / weights.double().sum()
    with torch.enable_grad():
        coefficients = torch.zeros(padded.shape[-1], dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([coefficients], max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def compute() -> Tensor:
            solver.zero_grad()
            logs = (padded @ coefficients).masked_fill(absent, -torch.inf).log_softmax(-1)
            loss = -(shares * logs[torch.arange(count), truth]).sum() + RIDGE * coefficients[:free].square().sum()
            torch.autograd.backward(loss)
            return loss

        solver.step(compute)  # type: ignore[no-untyped-call]
    return coefficients.detach()


def fit_binary(features: Tensor, truth: Tensor, weights: Tensor, *, has_constant: bool = True) -> Tensor:
    """Return the coefficients of a logistic regression, that of the constant last, fp64 `[features (+ 1)]`.

    Args:
        features: `[examples, features]`.
        truth: 1 or 0 `[examples]`.
        weights: `[examples]`.
        has_constant: Whether there is a constant.
    """
    count = features.shape[1]
    if has_constant:
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    options = [torch.stack([row / 2, -row / 2]) for row in features.double()]
    return fit_choice(options, [int(not value) for value in truth.tolist()], weights, count)
