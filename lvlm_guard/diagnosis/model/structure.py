"""What of a model can be measured, found by looking; what cannot is said with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused, Refused
from lvlm_guard.forward.interventions.attention_layers import find_attention
from lvlm_guard.forward.interventions.sites import BLOCKS, find_site


@dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """What of a model can be measured.

    Args:
        depth: Layers of the decoder.
        heads: Query heads of each layer whose attention can be observed, by layer.
        attentions: The modules of these, by layer.
        sums: Layers that add their attention and their feed-forward to what they are given, and nothing else.
        unequal: Layers that do more, where most layers of their class do not.
        tower: Layers of the vision tower.
        entrance: The module that takes the pixels, or None.
        norm: The norm behind the last layer, or None.
        missing: What cannot be measured, a sentence each.
    """

    depth: int
    heads: dict[int, int]
    attentions: dict[int, nn.Module]
    sums: tuple[int, ...]
    unequal: tuple[int, ...]
    tower: int
    entrance: nn.Module | None
    norm: nn.Module | None
    missing: tuple[str, ...]


def inspect_structure(model: Any) -> Structure:
    """Return what of a model can be measured.

    Raises:
        ModelRefused: It shows no decoder layers, so nothing of it can be.
    """
    layers, missing = anatomy.decoder_layers(model), list[str]()
    attentions, heads = _try(lambda: _find_heads(model), missing, "attention") or ({}, {})
    if silent := [layer for layer in range(len(layers)) if layer not in heads] if heads else []:
        missing.append(f"attention: layers {silent} have none that can be observed.")
    sums, unequal = _find_sums(model, layers, missing)
    entrance, tower = _find_tower(model, missing)
    if anatomy.attends_across(model):
        missing.append("projector: image features stand beside the prompt, and are not measured where they enter.")
    norm = anatomy.final_norm(model)
    return Structure(len(layers), heads, attentions, sums, unequal, tower, entrance, norm, tuple(missing))


def _find_heads(model: Any) -> tuple[dict[int, nn.Module], dict[int, int]]:
    """Return the attention of each layer that reads its own positions, and how many query heads it has."""
    places = {module: place for module, place in find_attention(model).items() if place.reach != "across"}
    if not places:
        raise ModelRefused("no layer runs its attention through transformers' interface.")
    modules = {place.layer: module for module, place in places.items()}
    return modules, {place.layer: place.heads for place in places.values()}


def _find_sums(model: Any, layers: nn.ModuleList, missing: list[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers that only add their blocks, and those of the same class as most of these that do not."""
    reasons = {number: _refusal(model, layer) for number, layer in enumerate(layers)}
    sums = tuple(number for number, reason in reasons.items() if not reason)
    kinds = {type(layers[number]) for number in sums}
    unequal = tuple(
        number
        for number, reason in reasons.items()
        if reason and type(layers[number]) in kinds and 2 * len(sums) > len(layers)
    )
    if unlike := [number for number, reason in reasons.items() if reason and number not in unequal]:
        missing.append(f"blocks: in layers {unlike}, {reasons[unlike[0]]}")
    return sums, unequal


def _refusal(model: Any, layer: nn.Module) -> str:
    try:
        for block in BLOCKS:
            find_site(model, layer, block)
    except Refused as error:
        return str(error)
    return ""


def _find_tower(model: Any, missing: list[str]) -> tuple[nn.Module | None, int]:
    """Return the module that takes the pixels, and the number of layers of the tower."""
    layers = _try(lambda: anatomy.vision_layers(model), missing, "tower") or []
    if not layers:
        return None, 0
    entrance = anatomy.vision_tower(model)
    return entrance, len(layers)


def _try(find: Callable[[], Any], missing: list[str], name: str) -> Any:
    try:
        return find()
    except Refused as error:
        missing.append(f"{name}: {error}")
        return None
