"""One look inside: a prefill of prompts with their true answers, watched by hooks that change nothing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lvlm_guard import AttentionEdit, Generation, Guard, HiddenEdit, NoEffectWarning, View, hookimpl
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import Encoded
from lvlm_guard.diagnosis.model.masks import noted_biases
from lvlm_guard.diagnosis.model.moments import Moments
from lvlm_guard.diagnosis.model.structure import Structure
from lvlm_guard.forward.installations import hook_with_kwargs

ONE_TOKEN = {"max_new_tokens": 1, "min_new_tokens": 0, "do_sample": False, "num_beams": 1}


@dataclass(repr=False)
class Recording:
    """What was seen in one forward.

    Args:
        moments: Of each component, at the positions that predict answers; of the tower and the projector over image tokens.
        sums: Greatest difference between what comes out of a layer and the sum of what goes into it, by layer, in units of rounding.
        leaks: Greatest attention to padding, by layer.
        ahead: Greatest attention to positions that come later, by layer.
        biases: Greatest number, in nats, that a mask adds to scores of image keys in place of letting or hiding them, by layer.
        text_biases: The same of all other keys.
        last: What the last layer returned at the last positions `[rows, window, hidden]`.
        logits: The model's own logits at the last position `[rows, vocab]`.
        pixels: What the tower was given, tensor after tensor.
    """

    moments: dict[Component, Moments] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)
    leaks: dict[int, float] = field(default_factory=dict)
    ahead: dict[int, float] = field(default_factory=dict)
    biases: dict[int, float] = field(default_factory=dict)
    text_biases: dict[int, float] = field(default_factory=dict)
    last: Tensor | None = None
    logits: Tensor | None = None
    pixels: list[Tensor] = field(default_factory=list)


def record(model: Any, structure: Structure, encoded: Encoded) -> Recording:
    """Run a batch once and return what was seen."""
    recorder = ComponentWatch(structure, encoded)
    recording = recorder.recording
    entered: list[Tensor] = []
    with (
        _recorded_input(structure.entrance, recording.pixels),
        _recorded_input(structure.norm, entered),
        noted_biases(structure.attentions, encoded.window, recorder.masks),
    ):
        run_prefill(model, encoded, recorder)
    recorder.close(entered)
    return recording


def run_prefill(model: Any, encoded: Encoded, *strategies: Any) -> None:
    """Run the prefill of a batch under strategies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        Guard(model, None, list(strategies)).generate(**encoded.inputs, **ONE_TOKEN)


@contextmanager
def _recorded_input(part: nn.Module | None, inputs: list[Tensor]) -> Iterator[None]:
    """Keep the first floating-point tensor that a module is given, each time it runs in this thread."""
    if part is None:
        yield
        return
    thread = threading.get_ident()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if threading.get_ident() != thread:
            return
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        inputs.extend([value.detach().clone() for value in values if value.is_floating_point()][:1])

    handle = hook_with_kwargs(part, note, before=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False, repr=False)
class ComponentWatch:
    """Watches every component in a prefill.

    Args:
        structure: What can be watched.
        encoded: The batch.
        recording: What was seen.
    """

    name: ClassVar[str] = "component_watch"

    structure: Any
    encoded: Any
    recording: Any = field(default_factory=Recording)
    blocks: Any = field(default_factory=dict)
    masks: Any = field(default_factory=dict)

    @hookimpl
    def hidden(self) -> Iterable[HiddenEdit]:
        """Watch the tower, the embeddings of the image, the blocks and the residual stream."""
        if self.structure.tower:
            yield HiddenEdit("residual", self._see_tower, tower="vision", when="prefill", observes=True)
        yield self._watch("embedding", self._see_image, (0, 1))
        for layer in range(self.structure.depth):
            if layer in self.structure.sums:
                yield self._watch("attention", self._keep_block("attention"), (layer, layer + 1))
                yield self._watch("mlp", self._keep_block("mlp"), (layer, layer + 1))
            yield self._watch("residual", self._see_stream, (layer, layer + 1))

    @hookimpl
    def attention(self) -> Iterable[AttentionEdit]:
        """Watch attention to the image, and what heads return."""
        for layer in self.structure.heads:
            place = (layer, layer + 1)
            yield _observe(place, self._see_probabilities, "probabilities")
            yield _observe(place, self._see_heads, "outputs")

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep the model's logits."""
        self.recording.logits = gen.logits()[:, -1].float()

    def _watch(self, site: Any, look: Callable[[Tensor, View], Tensor], layers: tuple[int, int]) -> HiddenEdit:
        return HiddenEdit(site, look, layers, when="prefill", observes=True)

    def _add(self, component: Component, vectors: Tensor, weights: Tensor | None = None) -> None:
        moments, before = Moments.of(vectors, weights), self.recording.moments.get(component)
        self.recording.moments[component] = moments if before is None else before + moments

    def weights(self, positions: int, device: torch.device) -> Tensor:
        """Return the weights of the last positions `[rows, positions]`: each item counts its own, what predicts nothing does not."""
        weights: Tensor = self.encoded.weigh_positions(positions, device)
        return weights

    def _cut(self, hidden: Tensor) -> Tensor:
        return hidden[:, -self.encoded.window :]

    def _see_tower(self, hidden: Tensor, view: View) -> Tensor:
        """Take for the output of a layer what the next one is given, so that nothing between them is missed."""
        if isinstance(view.input, Tensor):
            self._add(Component("tower", view.layer - 1) if view.layer else Component("patches"), view.input)
        if view.layer == self.structure.tower - 1:
            self._add(Component("tower", view.layer), hidden)
        return hidden

    def _see_image(self, hidden: Tensor, view: View) -> Tensor:
        if bool((image := view.image).any()):
            self._add(Component("projector"), hidden[image])
        return hidden

    def _keep_block(self, name: Any) -> Callable[[Tensor, View], Tensor]:
        def look(hidden: Tensor, view: View) -> Tensor:
            block = self.blocks[name, view.layer] = self._cut(hidden)
            self._add(Component(name, view.layer), block, self.weights(block.shape[1], block.device))
            return hidden

        return look

    def _see_stream(self, hidden: Tensor, view: View) -> Tensor:
        blocks = [self.blocks.pop((name, view.layer), None) for name in ("attention", "mlp")]
        if isinstance(view.input, Tensor):
            self._compare(view.layer, self._cut(view.input))
        after = self.recording.last = self._cut(hidden)
        self.blocks["returned", view.layer] = after
        if isinstance(view.input, Tensor) and all(isinstance(block, Tensor) for block in blocks):
            self._note_sum(view.layer, compare_sum(after, [self._cut(view.input), *blocks]))
        return hidden

    def _compare(self, layer: int, entering: Tensor) -> None:
        """Note what somebody did to the output of the layer before, on its way to where it enters."""
        returned = self.blocks.pop(("returned", layer - 1), None)
        if returned is not None and returned.shape == entering.shape:
            self._note_sum(layer - 1, compare_sum(entering, [returned.to(entering.device)]))

    def _note_sum(self, layer: int, size: float) -> None:
        self.recording.sums[layer] = max(size, self.recording.sums.get(layer, 0.0))

    def close(self, entered: list[Tensor]) -> None:
        """Take what entered the final norm for the end of the stream, where it is known."""
        if entered and entered[-1].ndim == 3:  # noqa: PLR2004 - rows, positions, hidden
            states = self._cut(entered[-1])
            self._compare(self.structure.depth, states)
            if self.recording.last is not None and states.shape == self.recording.last.shape:
                self.recording.last = states

    def _see_probabilities(self, probabilities: Tensor, view: View) -> Tensor:
        window = probabilities[:, :, -self.encoded.window :]
        mass = (window * view.keys[:, None, None, :]).sum(-1).transpose(1, 2)
        self._add(Component("image_mass", view.layer), mass, self.weights(mass.shape[1], mass.device))
        self._note_bias(view)
        queries, keys = window.shape[-2:]
        later = torch.ones(queries, keys, dtype=torch.bool, device=window.device).triu(keys - queries + 1)
        self.recording.ahead[view.layer] = float((window * later).max())
        if view.valid.shape[1] >= keys:
            padding = ~view.fit(view.valid)[:, None, None, :]
            queried = view.valid[:, None, -queries:, None]
            self.recording.leaks[view.layer] = float((window * padding * queried).max())
        return probabilities

    def _note_bias(self, view: View) -> None:
        bias = self.masks.pop(view.layer, None)
        if bias is not None and bias.shape[-1] == view.keys.shape[-1]:
            image = view.keys.to(bias.device)
            self.recording.biases[view.layer] = float((bias * image).max())
            self.recording.text_biases[view.layer] = float((bias * ~image).max())

    def _see_heads(self, outputs: Tensor, view: View) -> Tensor:
        window = outputs[:, :, -self.encoded.window :]
        weights = self.weights(window.shape[2], window.device)
        for head in range(window.shape[1]):
            self._add(Component("head", view.layer, head), window[:, head], weights)
        return outputs


def _observe(layers: tuple[int, int], look: Callable[[Tensor, View], Tensor], stage: Any) -> AttentionEdit:
    return AttentionEdit(layers, look, keys="image", queries="after_image", when="prefill", stage=stage, observes=True)


def compare_sum(after: Tensor, parts: list[Tensor]) -> float:
    """Return how far a layer's output is from the sum of its parts, in units of what rounding allows; below 1 is equal."""
    total = sum(part.double() for part in parts)
    size = after.double().abs() + sum(part.double().abs() for part in parts)
    allowed = size * ROUNDINGS * torch.finfo(after.dtype).eps + torch.finfo(torch.float32).tiny
    return float(((after.double() - total).abs() / allowed).max())


ROUNDINGS = 4
"""Roundings of a sum of three numbers, and some more."""
