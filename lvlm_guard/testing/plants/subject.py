"""The parts of a model that faults are planted in, and how large is what they return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.forward.interventions.probing import run_decoder
from lvlm_guard.forward.interventions.states import first_tensor, replace_first

Undo = Callable[[], None]


@dataclass(frozen=True, eq=False)
class PlantBed:
    """A model to plant faults in.

    Args:
        model: The model.
        processor: Its processor.
    """

    model: Any
    processor: Any

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return anatomy.decoder_layers(self.model)

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return anatomy.head_count(self.layers)

    @property
    def tower(self) -> nn.Module:
        """The module that takes the pixels."""
        return anatomy.vision_tower(self.model)

    @property
    def tower_depth(self) -> int:
        """Layers of the vision tower."""
        return len(anatomy.vision_layers(self.model))

    @property
    def projector(self) -> nn.Module:
        """The module between the tower and the decoder.

        Raises:
            ModelRefused: There is none that is called so.
        """
        marks = ("projector", "connector", "merger")
        for name, part in self.model.named_modules():
            if any(mark in name.rpartition(".")[2] for mark in marks):
                return part
        raise ModelRefused(f"{type(self.model).__name__} shows no projector to plant a fault in.")

    @property
    def head(self) -> nn.Linear:
        """The module that makes logits."""
        return self.model.get_output_embeddings()

    def token(self, word: str) -> int:
        """Return the token of a word.

        Raises:
            InputError: It is not one token.
        """
        ids = self.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"{word!r} is {len(ids)} tokens of this model, so no fault can be planted on it.")
        return int(ids[0])

    def direction(self, word: str) -> Tensor:
        """Return the unit vector of hidden states that the head reads as a word."""
        weight = self.head.weight.detach().float()
        row = weight[self.token(word)] - weight.mean(0)
        return row / row.norm()

    def size(self, part: nn.Module) -> float:
        """Return the mean norm of what a part of the decoder returns on random embeddings."""
        norms: list[float] = []
        handle = part.register_forward_hook(
            lambda _, __, output: norms.append(float(first_tensor(output).float().norm(dim=-1).mean()))
        )
        try:
            run_decoder(self.model)
        finally:
            handle.remove()
        return norms[-1]


def edit_output(part: nn.Module, edit: Callable[[Tensor], Tensor]) -> Undo:
    """Change what a part computes and returns first, as an error in its code or weights would."""
    before, forward = vars(part).get("forward"), part.forward

    def faulty(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return replace_first(output, edit(first_tensor(output)))

    def undo() -> None:
        if before is None:
            del part.forward
        else:
            part.forward = before

    part.forward = functools.wraps(forward)(faulty)
    return undo


def hook_output(part: nn.Module, edit: Callable[[Tensor], Tensor]) -> Undo:
    """Change what a part returns first by a hook that somebody left on it."""
    handle = part.register_forward_hook(lambda _, __, output: replace_first(output, edit(first_tensor(output))))
    return handle.remove


def edit_pixels(part: nn.Module, edit: Callable[[Tensor], Tensor]) -> Undo:
    """Change the first floating-point tensor that a part is given."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for place, value in enumerate(args):
            if isinstance(value, Tensor) and value.is_floating_point():
                return (*args[:place], edit(value), *args[place + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                return args, {**kwargs, name: edit(value)}
        return None

    return hook_with_kwargs(part, hook, before=True).remove


def change_weight(weight: Tensor, edit: Callable[[Tensor], Tensor]) -> Undo:
    """Change a weight in place; the undo puts exactly the old values back."""
    old_values = weight.detach().clone()

    def undo() -> None:
        with torch.no_grad():
            weight.copy_(old_values)

    with torch.no_grad():
        weight.copy_(edit(old_values))
    return undo
