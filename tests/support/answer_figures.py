"""What a diagnosis of an answer says of a tiny model, computed by the model alone on eager attention."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import Guard, anatomy
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.recompute import extend
from lvlm_guard.testing.sequences import pictures
from lvlm_guard.testing.tiny import VISION_END, VISION_START

PROMPT, ANSWER = "w21 w33", "w81 no-17 w90 w97 no-21"
Change = Callable[[dict[str, Any], Any], dict[str, Any]]


def build_guard(architecture: str) -> Guard:
    """Return a guard without strategies on a tiny model."""
    model, _ = tiny(architecture)
    return Guard(model, TinyProcessor(architecture), None)


def read_words(text: str) -> list[tuple[int, int, str, str]]:
    """Return every second word of an answer with a question of its own."""
    matches = list(re.finditer(r"[\w-]+", text))[::2]
    return [(*match.span(), "object", f"w14 {match[0]} w{number + 20}") for number, match in enumerate(matches)]


def logits_by_hand(architecture: str, change: Change | None = None, picture: Any = None) -> tuple[Tensor, list[int]]:
    """Return logits `[tokens, vocab]` that predict each token of the answer, and its tokens; one forward on eager attention."""
    output, ids = run_by_hand(architecture, change, picture)
    return output.logits[0, -len(ids) - 1 : -1].float(), ids


def attention_by_hand(architecture: str) -> tuple[Tensor, Tensor]:
    """Return shares of attention on the image `[layers, heads, tokens]`, and means by image token `[tokens, image tokens]`."""
    output, ids = run_by_hand(architecture, output_attentions=True)
    image = find_image(architecture)
    maps = torch.stack([layer[0, :, -len(ids) - 1 : -1, : len(image)][..., image] for layer in output.attentions])
    return maps.sum(-1), maps.mean((0, 1))


def lens_by_hand(architecture: str) -> Tensor:
    """Return probabilities of the answer's tokens `[layer outputs, image tokens, tokens]` by norm and head."""
    model, _ = tiny(architecture)
    with torch.no_grad():
        kept: list[Tensor] = []
        layers = list(anatomy.decoder_layers(model))
        hooks = [
            layers[0].register_forward_pre_hook(
                lambda _, args, kwargs: kept.append(_first(args, kwargs)), with_kwargs=True
            )
        ]
        hooks += [
            layer.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
            for layer in layers
        ]
        inputs, ids = _extended(architecture, None, None)
        model(**inputs, use_cache=False)
        for hook in hooks:
            hook.remove()
        image = find_image(architecture)
        norm: Any = anatomy.final_norm(model)
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        states = torch.stack([state[0, : len(image)][image] for state in kept])
        probabilities: Tensor = head(norm(states)).float().softmax(-1)
        return probabilities[..., ids]


def find_image(architecture: str) -> Tensor:
    """Return which positions of the prompt are image tokens, bool `[length]`."""
    guard = build_guard(architecture)
    ids = guard.inputs(images=pictures(1), text=[f"user <image> {PROMPT}"])["input_ids"][0]
    image: Tensor = ids == anatomy.image_token_id(guard.model.config)
    return image


def without_image(inputs: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return inputs of the same prompt with neither image tokens nor the tokens that fence them."""
    ids = inputs["input_ids"][0]
    fences = torch.tensor([VISION_START, VISION_END, anatomy.image_token_id(config)])
    stays = ~torch.isin(ids, fences)
    return {"input_ids": ids[stays][None], "attention_mask": torch.ones(1, int(stays.sum()), dtype=torch.long)}


def run_by_hand(
    architecture: str, change: Change | None = None, picture: Any = None, **options: Any
) -> tuple[Any, list[int]]:
    """Return the output of one forward over prompt and answer on eager attention, and the tokens of the answer."""
    model, _ = tiny(architecture)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    inputs, ids = _extended(architecture, change, picture)
    with torch.no_grad():
        return model(**inputs, use_cache=False, **options), ids


def _extended(architecture: str, change: Change | None, picture: Any) -> tuple[dict[str, Any], list[int]]:
    guard = build_guard(architecture)
    batch = guard.inputs(images=[picture or pictures(1)[0]], text=[f"user <image> {PROMPT}"])
    inputs = dict(batch) if change is None else change(dict(batch), guard.model.config)
    ids = guard.processor.tokenizer(ANSWER)["input_ids"]
    return extend(inputs, ids), list(ids)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value
