"""How each kind of fault is put into a model; every function returns its undo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.testing.plants.masking import mask_image
from lvlm_guard.testing.plants.subject import PlantBed, Undo, change_weight, edit_output, edit_pixels, hook_output
from lvlm_guard.testing.plants.training import Example, train_decoder

if TYPE_CHECKING:
    from lvlm_guard.testing.plants.planting import Plant

RATE = 1e-3
"""Learning rate of the fine-tune on pictures of others, at strength 1."""


def install(plant: Plant, subject: PlantBed, examples: Sequence[Example] = ()) -> Undo:
    """Put a fault into a model."""
    if plant.kind == "prior":
        return train_decoder(subject, examples, rate=RATE * plant.strength)
    return INSTALLERS[plant.kind](plant, subject)


def _blank(_: Plant, subject: PlantBed) -> Undo:
    return edit_pixels(subject.tower, torch.zeros_like)


def _swap(_: Plant, subject: PlantBed) -> Undo:
    return edit_pixels(subject.tower, lambda pixels: pixels.roll(1, 0))


def _zero_patches(_: Plant, subject: PlantBed) -> Undo:
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next(part for part in subject.tower.modules() if isinstance(part, kinds))
    return change_weight(first.weight, torch.zeros_like)


def _noise(plant: Plant, part: nn.Module) -> Undo:
    """Add noise as large as `strength` times the spread of what the part returns, the same in every run."""

    def edit(output: Tensor) -> Tensor:
        draw = torch.Generator("cpu").manual_seed(plant.seed)
        noise = torch.randn(output.shape, generator=draw).to(output)
        return output + plant.strength * output.float().std().to(output) * noise

    return edit_output(part, edit)


def _noise_tower(plant: Plant, subject: PlantBed) -> Undo:
    return _noise(plant, anatomy.vision_layers(subject.model)[plant.layer or 0])


def _noise_projector(plant: Plant, subject: PlantBed) -> Undo:
    return _noise(plant, subject.projector)


def _zero_projector(_: Plant, subject: PlantBed) -> Undo:
    return edit_output(subject.projector, torch.zeros_like)


def _scale_projector(plant: Plant, subject: PlantBed) -> Undo:
    return edit_output(subject.projector, lambda output: output * plant.strength)


def _average_projector(plant: Plant, subject: PlantBed) -> Undo:
    """Leave `strength` of how image tokens differ from their mean."""

    def edit(output: Tensor) -> Tensor:
        mean = output.mean(tuple(range(output.ndim - 1)), keepdim=True)
        return mean + plant.strength * (output - mean)

    return edit_output(subject.projector, edit)


def _mask(plant: Plant, subject: PlantBed) -> Undo:
    layers = range(plant.layer or 0, plant.last or 0)
    if plant.kind == "image_masked_weakly":
        return mask_image(subject, layers, plant.strength)
    return mask_image(subject, layers)


def _copy_word(plant: Plant, subject: PlantBed) -> Undo:
    """Make one head write a word into the stream whatever it attends to: a constant on its values."""
    attention = anatomy.layer_part(subject.layers[plant.layer or 0], "attention")
    values, output = getattr(attention, "v_proj", None), getattr(attention, "o_proj", None)
    if not isinstance(values, nn.Linear) or not isinstance(output, nn.Linear):
        raise ModelRefused(f"{type(attention).__name__} has no v_proj and o_proj to plant a copying head in.")
    size, head = output.in_features // subject.heads, plant.head or 0
    group = head // (subject.heads * size // values.out_features)
    weight = output.weight.detach().float()[:, head * size : (head + 1) * size]
    target = subject.direction(plant.word).to(weight) * plant.strength * subject.size(attention)
    constant = torch.linalg.lstsq(weight, target[:, None]).solution[:, 0]
    constant = constant * (target.norm() / (weight @ constant).norm())
    return edit_output(values, functools.partial(_add_slice, constant, group * size))


def _add_slice(constant: Tensor, start: int, output: Tensor) -> Tensor:
    edited = output.clone()
    edited[..., start : start + len(constant)] += constant.to(output)
    return edited


def _draw_push(plant: Plant, subject: PlantBed, part: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what adds a constant vector as large as `strength` times what the part returns: towards a word, or anywhere."""
    if plant.word:
        direction = subject.direction(plant.word)
    else:
        width = subject.head.weight.shape[1]
        direction = torch.randn(width, generator=torch.Generator("cpu").manual_seed(plant.seed))
        direction = direction / direction.norm()
    push = direction * plant.strength * subject.size(part)
    return lambda output: output + push.to(output)


def _bias_mlp(plant: Plant, subject: PlantBed) -> Undo:
    part = anatomy.layer_part(subject.layers[plant.layer or 0], "mlp")
    return edit_output(part, _draw_push(plant, subject, part))


def _push_residual(plant: Plant, subject: PlantBed) -> Undo:
    part = subject.layers[plant.layer or 0]
    return hook_output(part, _draw_push(plant, subject, part))


def _bias_yes(plant: Plant, subject: PlantBed) -> Undo:
    """Add to the logit of a word behind the head."""
    token = subject.token(plant.word)
    bias = torch.zeros(subject.head.weight.shape[0])
    bias[token] = plant.strength
    return edit_output(subject.head, lambda logits: logits + bias[: logits.shape[-1]].to(logits))


def _bias_object(plant: Plant, subject: PlantBed) -> Undo:
    """Add to the logit of a word by a bias of the head itself, as a bad fine-tune leaves it."""
    head, token = subject.head, subject.token(plant.word)
    if getattr(head, "bias", None) is not None:
        raise ModelRefused("The head of this model has a bias of its own; this fault is planted in heads without.")
    bias = torch.zeros(head.weight.shape[0], dtype=head.weight.dtype, device=head.weight.device)
    bias[token] = plant.strength
    head.bias = nn.Parameter(bias, requires_grad=False)

    def undo() -> None:
        head.register_parameter("bias", None)

    return undo


def _heat(plant: Plant, subject: PlantBed) -> Undo:
    """Sample at a temperature by default."""
    config = subject.model.generation_config
    old_values = {name: getattr(config, name, None) for name in ("do_sample", "temperature", "top_k")}
    config.do_sample, config.temperature, config.top_k = True, plant.strength, 0

    def undo() -> None:
        for name, value in old_values.items():
            setattr(config, name, value)

    return undo


INSTALLERS: dict[str, Callable[[Plant, PlantBed], Undo]] = {
    "picture_blank": _blank,
    "pictures_swapped": _swap,
    "patches_zero": _zero_patches,
    "tower_noise": _noise_tower,
    "projector_zero": _zero_projector,
    "projector_scaled": _scale_projector,
    "projector_mean": _average_projector,
    "projector_noise": _noise_projector,
    "image_masked": _mask,
    "image_masked_middle": _mask,
    "image_masked_weakly": _mask,
    "head_copies": _copy_word,
    "mlp_bias_early": _bias_mlp,
    "mlp_bias_late": _bias_mlp,
    "residual_push": _push_residual,
    "yes_bias": _bias_yes,
    "object_bias": _bias_object,
    "temperature": _heat,
}
