"""Where a decoder layer adds its attention and its feed-forward to the residual stream, found by running it once.

Some decoders norm what a block returns before they add it, or scale it. A layer's site is the output that is added, and
its factor; both are observed on a few random embeddings: the layer must return its input plus both blocks' contributions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.forward.interventions.probing import run_decoder
from lvlm_guard.forward.interventions.states import first_input, first_tensor
from lvlm_guard.protocols import Model

BLOCKS = ("attention", "mlp")
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 3e-2
"""How far, as a share of what a layer adds, contributions may be from what it adds, beside the rounding of the stream."""
MOST_UNCERTAIN = 0.5
"""How far off a factor may be for the rounding of the stream, at three standard errors."""


@dataclass(frozen=True)
class Site:
    """Where one block's contribution is edited.

    Args:
        block: The block, or where it begins, whose input edits may look at.
        part: The module whose output is added: the block, the norm behind it, or where it ends.
        factor: What the layer multiplies that output by.
    """

    block: nn.Module
    part: nn.Module
    factor: float


@dataclass
class _Observed:
    """What one layer was observed to do: input and output `[rows, positions, hidden]`, and each block's last output."""

    stream: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, nn.Module] = field(default_factory=dict)


_sites: weakref.WeakKeyDictionary[nn.Module, dict[str, Site]] = weakref.WeakKeyDictionary()
"""The sites of every layer that was looked at; none where its sum is not understood."""


def find_site(module: Model, layer: nn.Module, site: str) -> Site:
    """Return where the contribution of a layer's block is added.

    Raises:
        ModelRefused: The layer has no such block, or does something else than add both blocks to its input.
    """
    block = _find_block(layer, site) or anatomy.layer_part(layer, site)
    if layer not in _sites:
        _sites.update(_probe(module))
    resolved = _sites.get(layer, {}).get(site)
    if resolved is None:
        raise ModelRefused(
            f"{type(layer).__name__} does not simply add its {site} block to the residual stream, so the block's "
            "contribution cannot be edited. Choose a strategy that edits attention or the residual stream."
        )
    assert resolved.block is block
    return resolved


def _find_block(layer: nn.Module, site: str) -> nn.Module | None:
    """The block of a layer; of a feed-forward whose two products lie in the layer itself, the first of them."""
    if site != "mlp" or anatomy.find_part(layer, site) is not None:
        return anatomy.find_part(layer, site)
    products = [child for child in layer.children() if isinstance(child, nn.Linear)]
    return products[0] if len(products) == 2 else None  # noqa: PLR2004 - up and down


@torch.no_grad()
def _probe(module: Model) -> dict[nn.Module, dict[str, Site]]:
    """Run the decoder once, and return the sites of each of its layers.

    Raises:
        ModelRefused: It does not run on embeddings or tokens alone.
    """
    layers = anatomy.decoder_layers(module)
    with _observe(layers) as observed:
        run_decoder(module)
    return {layer: _solve(layer, layer_run) for layer, layer_run in zip(layers, observed, strict=True)}


@contextmanager
def _observe(layers: nn.ModuleList) -> Iterator[list[_Observed]]:
    """Hooks that note what layers and their blocks take and return."""
    observed = [_Observed() for _ in layers]
    with ExitStack() as undo:
        for layer, layer_run in zip(layers, observed, strict=True):
            undo.callback(hook_with_kwargs(layer, _note_stream(layer_run)).remove)
            blocks = {block: name for name in BLOCKS if (block := _find_block(layer, name)) is not None}
            for child in layer.children():
                undo.callback(child.register_forward_hook(_note_output(layer_run, blocks.get(child))).remove)
        yield observed


def _note_stream(layer_run: _Observed) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layer_run.stream = [first_input(args, kwargs), first_tensor(output)]

    return hook


def _note_output(layer_run: _Observed, name: str | None) -> Any:
    """Note what a block returns, or what a module makes of it that takes exactly that; dropouts make nothing of it."""

    def hook(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        follows = [block for block, value in layer_run.outputs.items() if args and args[0] is value]
        for block in [name] if name is not None else follows:
            layer_run.outputs[block] = first_tensor(output)
            if name is not None or not isinstance(part, nn.Dropout):
                layer_run.parts[block] = part

    return hook


def _solve(layer: nn.Module, layer_run: _Observed) -> dict[str, Site]:
    """Return the sites of a layer whose output is its input plus multiples of its blocks' outputs; none of another."""
    if not layer_run.stream or any(
        not isinstance(value, Tensor) for value in (*layer_run.stream, *layer_run.outputs.values())
    ):
        return {}
    before, after = (value.double().flatten().cpu() for value in layer_run.stream)
    names = list(layer_run.outputs)
    contributions = [layer_run.outputs[name].double().flatten().cpu() for name in names]
    is_shared = len(set(layer_run.parts.values())) < len(names)
    if not names or is_shared or any(value.shape != before.shape for value in (after, *contributions)):
        return {}
    matrix, added = torch.stack(contributions, dim=1), after - before
    tolerance = TOLERANCES.get(layer_run.stream[0].dtype, HALF_TOLERANCE)
    rounding = torch.finfo(layer_run.stream[0].dtype).eps * (before.abs() + after.abs())
    scale = rounding + tolerance * added.square().mean().sqrt() + torch.finfo(torch.float64).tiny
    weighted = matrix / scale[:, None]
    factors = torch.linalg.lstsq(weighted, (added / scale)[:, None]).solution[:, 0]
    error = ((added - matrix @ factors) / scale).square().mean().sqrt()
    uncertain = 3 * error / weighted.norm(dim=0)
    if not bool(error <= 1) or bool((uncertain > MOST_UNCERTAIN).any()):
        return {}
    return {
        name: Site(block, layer_run.parts[name], _round(float(factor), tolerance + float(doubt)))
        for name, factor, doubt in zip(names, factors, uncertain, strict=True)
        if (block := _find_block(layer, name)) is not None and abs(factor) > tolerance
    }


def _round(factor: float, tolerance: float) -> float:
    """A factor that is 1 but for rounding is 1."""
    return 1.0 if abs(factor - 1.0) <= tolerance else factor
