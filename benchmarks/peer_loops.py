"""Decoding loops of other packages, on a model and inputs that are already there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class PreparedInputs:
    """A processor of mitigv that hands out inputs made before: those of the prompt, or those without the image."""

    def __init__(self, inputs: Mapping[str, Tensor], without_image: Mapping[str, Tensor] | None) -> None:
        self._inputs = inputs
        self._without_image = without_image

    def __call__(self, **arguments: Any) -> Mapping[str, Tensor]:
        """Never called: mitigv asks `prepare_inputs` first."""
        raise NotImplementedError(f"asked for {sorted(arguments)}")

    def prepare_inputs(self, _prompt: str, images: Any) -> Mapping[str, Tensor]:
        """Return the inputs with or without the image."""
        if images is None and self._without_image is not None:
            return self._without_image
        return self._inputs

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        """Return a text for each row; nobody reads it."""
        return [str(row.shape[0]) for row in tokens]


def mitigv_loop(
    name: str, model: Any, inputs: Mapping[str, Tensor], without_image: Mapping[str, Tensor] | None = None
) -> Callable[[int], Any]:
    """Mitigv's own loop, with a mitigator's default settings; it has no end token, so every answer is as long as asked."""
    from mitigv import build_mitigator  # noqa: PLC0415 - installed only where it is compared
    from mitigv.backends.llava import LlavaModelAdapter  # noqa: PLC0415 - as above

    mitigator = build_mitigator(name, LlavaModelAdapter(model), PreparedInputs(inputs, without_image))
    return lambda tokens: mitigator.generate("the image", "", max_new_tokens=tokens)


def nnsight_loop(model: Any, inputs: Mapping[str, Tensor], branch: Mapping[str, Tensor]) -> Callable[[int], Any]:
    """A greedy contrast of two prompts as one would write it with nnsight: a trace for each forward, and caches carried by hand."""
    from nnsight import NNsight  # noqa: PLC0415 - installed only where it is compared

    traced = NNsight(model)

    def generate(tokens: int) -> Tensor:
        feeds, answer = [dict(inputs), dict(branch)], []
        for _ in range(tokens):
            logits = [_trace(traced, feed) for feed in feeds]
            token = (2.0 * logits[0] - logits[1]).argmax(-1, keepdim=True)
            answer.append(token)
            for feed in feeds:
                _go_on(feed, token)
        return torch.cat(answer, dim=1)

    return generate


def _trace(traced: Any, feed: dict[str, Any]) -> Tensor:
    """Logits of the last position; the cache goes into `feed`."""
    with traced.trace(**feed, use_cache=True):
        output = traced.output.save()
    feed["past_key_values"] = output.past_key_values
    logits: Tensor = output.logits[:, -1]
    return logits


def _go_on(feed: dict[str, Any], token: Tensor) -> None:
    feed.pop("pixel_values", None)
    feed["input_ids"] = token
    feed["attention_mask"] = torch.cat([feed["attention_mask"], torch.ones_like(token)], dim=1)
