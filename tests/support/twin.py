"""Twins: a method's formula run on the whole prompt at every step, on eager attention of its own, without the library.

A `Twin` runs one unpadded prompt with no cache and hands every intermediate value to callbacks. It imports nothing of
lvlm_guard, so that what the library does with caches, batches and beams is compared with something independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "twin"
ALIGNED = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
Change = Callable[..., Tensor]
_active: list[Twin] = []


@dataclass
class Twin:
    """One model seen whole. Every callback is optional and returns what takes the value's place.

    Args:
        model: The model, unguarded.
        image_token: Id of the image placeholder.
        scores: `(layer, scores [1, heads, queries, keys])` scaled, before mask and softmax.
        probabilities: `(layer, probabilities)`, same shape.
        outputs: `(layer, head outputs [1, heads, queries, size])`.
        mlp: `(layer, input, output)` of a feed-forward block `[1, positions, hidden]`, output as it is added.
        residual: `(layer, hidden)` after a layer.
        embedding: `(hidden)` before the first layer.

    After a run: `hidden[layer]` (1 to the depth, residual stream before the final norm), `seen[layer]` (probabilities),
    `image` (bool `[positions]`), `prompt` (length of the prompt).
    """

    model: Any
    image_token: int = 100
    scores: Change | None = None
    probabilities: Change | None = None
    outputs: Change | None = None
    mlp: Change | None = None
    residual: Change | None = None
    embedding: Change | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    seen: dict[int, Tensor] = field(default_factory=dict)
    image: Tensor = field(default_factory=lambda: torch.zeros(0))
    prompt: int = 0

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], generated: Sequence[int] = ()) -> Tensor:
        """Logits `[positions, vocab]` of prompt and generated tokens in one go, with every edit in place."""
        grown = grow(inputs, generated)
        self.image = grown["input_ids"][0] == self.image_token
        self.prompt = inputs["input_ids"].shape[1]
        with self._installed():
            output = self.model.generate(
                **grown,
                max_new_tokens=1,
                do_sample=False,
                use_cache=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        logits: Tensor = output.logits[0].float()
        return logits

    def next(self, inputs: Mapping[str, Tensor], generated: Sequence[int] = ()) -> Tensor:
        """Next-token logits `[vocab]`."""
        return self.run(inputs, generated)[-1]

    def lens(self, layer: int, *, normed: bool = True) -> Tensor:
        """Logits `[vocab]` that the last position of an inner layer says, 1 to the depth."""
        last = self.hidden[layer][0, -1:]
        last = self.decoder.norm(last) if normed else last
        logits: Tensor = self.model.get_output_embeddings()(last)[-1].float()
        return logits

    @property
    def decoder(self) -> Any:
        """The text model; some versions give what holds it."""
        decoder = self.model.get_decoder()
        return decoder if hasattr(decoder, "layers") else decoder.text_model

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        return len(self.decoder.layers)

    @contextmanager
    def _installed(self) -> Iterator[None]:
        config = self.decoder.config
        before, config._attn_implementation = config._attn_implementation, NAME
        handles = [*self._hooks()]
        _active.append(self)
        try:
            yield
        finally:
            _active.pop()
            config._attn_implementation = before
            for handle in handles:
                handle.remove()

    def _hooks(self) -> Iterator[Any]:
        layers = self.decoder.layers
        yield layers[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for index, layer in enumerate(layers):
            mlp = next(part for part in layer.children() if "MLP" in type(part).__name__)
            behind = getattr(layer, "post_feedforward_layernorm", mlp)  # the norm of what is added, where there is one
            taken: list[Tensor] = []
            yield mlp.register_forward_pre_hook(lambda _, args, taken=taken: taken.append(args[0]))
            yield behind.register_forward_hook(self._fed(index, taken))
            yield layer.register_forward_hook(self._passed(index))

    def _first(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.embedding is None:
            return None
        if args:
            return (self.embedding(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.embedding(kwargs["hidden_states"])}

    def _fed(self, index: int, taken: list[Tensor]) -> Callable[..., Any]:
        return lambda _, args, out: None if self.mlp is None else self.mlp(index, taken[-1], out)

    def _passed(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden if self.residual is None else self.residual(index, hidden)
            self.hidden[index + 1] = hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook


def grow(inputs: Mapping[str, Tensor], generated: Sequence[int]) -> dict[str, Tensor]:
    """Inputs of one prompt with generated tokens appended as text."""
    tokens = torch.tensor([list(generated)], dtype=torch.long)
    grown = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1)}
    for name, value in ALIGNED.items():
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.full_like(tokens, value)], dim=1)
    return grown


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Eager attention with full maps, one callback after each step."""
    twin, layer = _active[-1], module.layer_idx
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if twin.scores is not None:
        scores = twin.scores(layer, scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1, dtype=torch.float32)
    if twin.probabilities is not None:
        probabilities = twin.probabilities(layer, probabilities)
    twin.seen[layer] = probabilities
    outputs = probabilities.to(value.dtype) @ value
    if twin.outputs is not None:
        outputs = twin.outputs(layer, outputs)
    return outputs.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
