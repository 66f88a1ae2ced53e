"""Which attention edits and captures work in which attention module of the decoder."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import nn

from lvlm_guard.errors import GuardWarning, InputError, ModelRefused
from lvlm_guard.forward.interventions.attention_edits import ATTENTION
from lvlm_guard.forward.interventions.running import Attending
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, layer_range
from lvlm_guard.user_warnings import warn_user

REACH_OF_KEYS = {"image": "across", "generated": "own"}
"""Which module of a layer that attends to the decoder's own positions and to an encoder's apart has which keys."""


def plan_attention(
    work: Sequence[AttentionEdit | AttentionCapture], depth: int, modules: Mapping[nn.Module, Attending]
) -> dict[nn.Module, list[AttentionEdit | AttentionCapture]]:
    """Edits and captures of every module that has any; a warning says which layers of a range have no attention.

    Args:
        work: Edits and captures.
        depth: Layers of the decoder.
        modules: The attention modules.

    Raises:
        InputError: A layer or head outside the model.
        ModelRefused: A range holds no layer that has attention.
    """
    attending: dict[int, list[nn.Module]] = {}
    for module, place in modules.items():
        attending.setdefault(place.layer, []).append(module)
    plan: dict[nn.Module, list[AttentionEdit | AttentionCapture]] = {}
    blind: set[int] = set()
    for item in work:
        layers = layer_range(item.layers, depth)
        chosen = [layer for layer in layers if layer in attending]
        if not chosen:
            raise ModelRefused(
                f"Layers {list(layers)} of this model have no attention that can be edited, or more than one. {_name_attending(attending)}"
            )
        blind.update(set(layers).difference(chosen))
        for layer in chosen:
            module = _choose(item, attending[layer], modules)
            _check_heads(item, modules[module])
            plan.setdefault(module, []).append(item)
    if blind:
        warn_user(
            f"Layers {sorted(blind)} of this model have no attention that can be edited, so attention edits of a range that "
            f"holds them work on layers {sorted({modules[module].layer for module in plan})} alone.",
            GuardWarning,
        )
    return plan


def collect_places(
    plan: Mapping[nn.Module, Sequence[AttentionEdit | AttentionCapture]], modules: Mapping[nn.Module, Attending]
) -> dict[Hashable, frozenset[tuple[Hashable, int]]]:
    """What forwards that hold the rows of a branch come to, by branch."""
    places = {module: ((ATTENTION, modules[module].reach), modules[module].layer) for module in plan}
    branches = {item.branch for work in plan.values() for item in work}
    return {
        branch: frozenset(
            places[module] for module, work in plan.items() if any(item.branch == branch for item in work)
        )
        for branch in branches
    }


def _choose(
    item: AttentionEdit | AttentionCapture, attending: Sequence[nn.Module], modules: Mapping[nn.Module, Attending]
) -> nn.Module:
    """The module of a layer that has the keys of an edit or capture.

    Raises:
        ModelRefused: The layer attends in two places, and the keys lie in both.
    """
    if len(attending) == 1:
        return attending[0]
    reach = REACH_OF_KEYS.get(item.keys)
    if reach is None:
        raise ModelRefused(
            f"The layers of this model attend to their own positions and to what an encoder read apart from each other, and keys "
            f"{item.keys!r} lie in both. Choose keys 'image', which lie in the encoder, or 'generated'."
        )
    return next(module for module in attending if modules[module].reach == reach)


def _name_attending(attending: Mapping[int, Sequence[nn.Module]]) -> str:
    if not attending:
        return "None of its layers runs attention through transformers' interface: choose a strategy that does not edit or observe attention."
    return f"Choose among layers {sorted(attending)}."


def _check_heads(item: AttentionEdit | AttentionCapture, attending: Attending) -> None:
    heads = item.heads or () if isinstance(item, AttentionEdit) else ()
    for head in heads:
        if not 0 <= head < attending.heads:
            raise InputError(
                f"Head {head} lies outside a decoder of {attending.heads} heads (0 to {attending.heads - 1})."
            )
