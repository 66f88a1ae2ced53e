"""A first projector in closed form: each image token is mapped to the embedding of the words for what covers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.testbed.collage.world.scenes import CollageScene

RIDGE = 30.0
"""Added to the diagonal of the features' second moments, for each thousand tokens."""
GAIN = 3.0
"""What the map's output is multiplied by: the regression shrinks it, and the language model tells near embeddings apart badly."""
COLOUR = 0.5
"""What the word for the colour of a tinted thing counts beside its name."""


@torch.no_grad()
def fit_projector(projector: Any, features: Tensor, targets: Tensor) -> float:
    """Set a projector to `GAIN` times the ridge regression from features to targets, as far as its width allows.

    A GELU of x less a GELU of -x is x, so a hidden layer of width 2n holds the n strongest directions of a linear map exactly.

    Args:
        projector: The two-layer projector of a LLaVA.
        features: Shape (tokens, channels).
        targets: Shape (tokens, hidden).

    Returns:
        The share of the targets' variance that the regression explains on these tokens.
    """
    weight = _ridge(features, targets)
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    count = projector.linear_1.out_features // 2
    roots = sizes[:count].sqrt()
    inward, outward = roots[:, None] * right[:count], left[:, :count] * roots * GAIN
    projector.linear_1.weight.copy_(torch.cat((inward, -inward)))
    projector.linear_1.bias.zero_()
    projector.linear_2.weight.copy_(torch.cat((outward, -outward), dim=1))
    projector.linear_2.bias.copy_(targets.mean(0) - GAIN * weight @ features.mean(0))
    residual = (features - features.mean(0)) @ weight.T - (targets - targets.mean(0))
    return float(1 - residual.square().sum() / (targets - targets.mean(0)).square().sum())


def _ridge(features: Tensor, targets: Tensor) -> Tensor:
    """Return the weight (hidden, channels) of the ridge regression between centred features and targets, in fp32."""
    inputs, outputs = features.double(), targets.double()
    centre, aim = inputs.mean(0), outputs.mean(0)
    inputs = inputs - centre
    moments = inputs.T @ inputs + RIDGE * len(inputs) / 1000 * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(moments, inputs.T @ (outputs - aim)).T.float()


def word_targets(scene: CollageScene, tokenizer: Any, words: Tensor, tokens: int, side: int) -> Tensor:
    """Return what each image token of a scene should be mapped to, shape (tokens, hidden).

    That is the mean embedding of the name of what covers its middle, plus that of its colour; without either, the mean
    embedding of all words.

    Args:
        scene: The scene.
        tokenizer: Of the language model.
        words: Its embeddings, shape (words, hidden).
        tokens: Image tokens of a picture, in a square.
        side: Pixels of the picture's side.
    """
    across = round(tokens**0.5)
    middles = (torch.arange(across) + 0.5) * side / across
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    targets = words.mean(0).expand(tokens, -1).clone()
    for group in scene.groups:
        named = _embed(group.name, tokenizer, words)
        if group.colour is not None:
            named = named + COLOUR * _embed(group.colour, tokenizer, words)
        for copy in group.copies:
            inside = (rows >= copy.top) & (rows < copy.top + copy.side)
            inside &= (columns >= copy.left) & (columns < copy.left + copy.side)
            targets[inside.flatten()] = named
    return targets


def _embed(text: str, tokenizer: Any, words: Tensor) -> Tensor:
    ids: Sequence[int] = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    return words[list(ids)].mean(0)
