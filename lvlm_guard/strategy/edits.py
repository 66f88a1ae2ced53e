"""Work inside the layers: edits of attention and hidden states, captures, and readouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from lvlm_guard.deprecation import rename_value, renamed_fields
from lvlm_guard.errors import InputError, nearest, quote
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn

Depth: TypeAlias = "tuple[float, float]"
"""A half-open range of layers: whole numbers counted from 0, or fractions of the decoder's depth."""


class View(Protocol):
    """The facts that an edit inside a layer may read; tensors hold the rows of its own block, on the layer's device."""

    @property
    def gen(self) -> Any:
        """The `Generation`: `gen.rows`, `gen.observations`, `gen.state`."""
        ...

    @property
    def layer(self) -> int:
        """Index of the layer."""
        ...

    @property
    def keys(self) -> Tensor:
        """Bool `[rows, keys]`: the edit's key set in this layer (attention edits and captures)."""
        ...

    @property
    def positions(self) -> Tensor:
        """Bool `[rows, positions]`: where the edit applies among the positions handed over."""
        ...

    @property
    def image(self) -> Tensor:
        """Bool `[rows, positions]`: which positions of this forward are image tokens."""
        ...

    @property
    def valid(self) -> Tensor:
        """Bool `[rows, positions]`: which positions of this forward are not padding."""
        ...

    @property
    def predicting(self) -> int:
        """How many of the last positions predict generated tokens: 1 in a prefill and in plain decoding."""
        ...

    @property
    def input(self) -> Tensor | None:
        """Input of the module whose output is edited (hidden edits)."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """Spread values `[rows, predicting, ...]` over all positions: those of the prompt get the value of its last."""
        ...

    def fit(self, values: Tensor) -> Tensor:
        """Cut values over every position so far `[..., positions]` to the keys that this layer holds."""
        ...

    def observed(self, key: Hashable, layer: int) -> Tensor:
        """Return what a capture observed in an earlier layer of this forward, or in main's forward before a branch's."""
        ...

    def readout(self, layer: int) -> Tensor:
        """Return next-token logits `[rows, predicting, vocab]` of an online readout of an earlier layer of this forward."""
        ...


OLD_KEY_SETS = {"system": "before_image", "text": "after_image", "own": "generated"}
OLD_POSITIONS = {"decode": "predicting"}

Operation: TypeAlias = Callable[[Tensor, View], Tensor]
"""Maps a tensor, and the `View` that says what it holds, to a tensor."""


@renamed_fields(rows="branch")
@dataclass(frozen=True)
class AttentionEdit:
    """Edit attention inside main's or a branch's forward.

    Args:
        layers: Half-open range of decoder layers: floats are fractions of the depth, whole numbers count layers; at
            least one layer is taken.
        operation: On scaled scores before the softmax: `add` an amount, `scale` by it, `add_abs` (`s + amount |s|`),
            `mask`. On probabilities: `scale_probabilities`. On head outputs: `gate_heads`. Or a function of a tensor
            and a `View`, at the `stage` given: scores and probabilities are `[rows, heads, queries, keys]`, outputs
            `[rows, heads, queries, size]`, in fp32; all queries are handed over, only those of the edit are kept.
        amount: What the operation adds or multiplies by; 0 for `add` and `add_abs`, 1 for the scales is neutral.
        keys: Key set: `image`, `before_image`, `after_image` (generated tokens included), `generated`, `all`. In
            cross-attention layers every key is an image key, but in decoders of an encoder those of the image alone; where
            these attend to their own positions apart from it, keys are `image` or `generated`.
        queries: `predicting`, the positions that predict generated tokens (the last of the prompt and every generated
            one), `after_image` (those and the positions after the image), or `all`.
        heads: The heads edited; None is all of them.
        branch: `"main"` or the key of a branch.
        when: `prefill` edits prompt positions, `decode` generated ones.
        stage: Where a function operates.
        renormalise: Whether edited probabilities are divided by their sum.
        depends_on_end: Whether what it does in the prompt depends on the text behind the images, so that a look cannot run
            the images once for many questions; None: a function does, unless `when="decode"`.
        observes: Whether a function only looks: what it returns is left out, and nothing changes.

    Raises:
        InputError: An unknown operation, or a named one that observes.
    """

    layers: Depth
    operation: Literal["add", "scale", "add_abs", "mask", "scale_probabilities", "gate_heads"] | Operation
    amount: float = 1.0
    keys: Literal["image", "before_image", "after_image", "generated", "all"] = "image"
    queries: Literal["predicting", "after_image", "all"] = "predicting"
    heads: tuple[int, ...] | None = None
    branch: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"
    stage: Literal["scores", "probabilities", "outputs"] = "scores"
    renormalise: bool = False
    depends_on_end: bool | None = None
    observes: bool = False

    def __post_init__(self) -> None:
        rename_value(self, "keys", OLD_KEY_SETS)
        rename_value(self, "queries", OLD_POSITIONS)
        _check_choices(self, keys=KEY_SETS, queries=QUERIES, when=WHEN, stage=set(STAGES.values()))
        _check_switch("AttentionEdit.observes", self.observes)
        if self.observes and not callable(self.operation):
            raise InputError(f"An AttentionEdit observes by a function, and {quote(self.operation)} is none.")
        if not callable(self.operation) and not (isinstance(self.operation, str) and self.operation in STAGES):
            raise InputError(f"No attention operation {quote(self.operation)}. Known: {', '.join(STAGES)}.")
        if not callable(self.operation):
            object.__setattr__(self, "stage", STAGES[self.operation])


KEY_SETS = ("image", "before_image", "after_image", "generated", "all")
QUERIES = ("predicting", "after_image", "all")
WHEN = ("prefill", "decode", "both")
SITES = ("mlp", "attention", "residual", "embedding")
VISION = {(site, "all", when) for site in SITES[:3] for when in ("prefill", "both")}
"""Site, positions and forwards that exist in a vision tower."""
STAGES = {
    "add": "scores",
    "scale": "scores",
    "add_abs": "scores",
    "mask": "scores",
    "scale_probabilities": "probabilities",
    "gate_heads": "outputs",
}
"""The named operations of attention edits, and where each operates."""


@renamed_fields(rows="branch")
@dataclass(frozen=True)
class AttentionCapture:
    """Observe attention, for later layers of the same forward, for branches, and for `terms`.

    Args:
        key: Name of the observation; found as `gen.observations[key, layer]`.
        layers: As in `AttentionEdit`.
        reduce: Turns probabilities `[rows, heads, predicting, keys]`, fp32, of the positions that predict generated
            tokens into what is kept. Keys are every position so far; those outside a layer's window have 0.
        keys: Key set handed to `reduce` as `view.keys`; nothing is masked.
        branch: `"main"` or the key of a branch.
        when: `prefill`, `decode` or `both`.
        depends_on_end: Whether `reduce` looks at more than the probabilities and `view.keys`, of which a look hands over all;
            None: it does, unless `when="decode"`.
    """

    key: Hashable
    layers: Depth
    reduce: Operation
    keys: Literal["image", "before_image", "after_image", "generated", "all"] = "image"
    branch: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"
    depends_on_end: bool | None = None

    def __post_init__(self) -> None:
        rename_value(self, "keys", OLD_KEY_SETS)
        _check_choices(self, keys=KEY_SETS, when=WHEN)
        _check_function("AttentionCapture.reduce", self.reduce)


@renamed_fields(rows="branch")
@dataclass(frozen=True)
class HiddenEdit:
    """Edit hidden states.

    Args:
        site: What a layer's feed-forward (`mlp`) or attention block (`attention`) adds to the residual stream, behind a
            norm or a factor where the layer has one; the layer's output (`residual`); or the token embeddings before the
            first layer (`embedding`). In the vision tower, the output of the block itself.
        edit: `Turn`, `Project` or `Shift`, which the core computes in one kernel where it can; or a function of the hidden states
            and a `View`, same shape back: `[rows, positions, hidden]` in the decoder, called for each stream where layers have
            several residual streams; in the vision tower whatever it works on, images or packed patches first.
        layers: As in `AttentionEdit`; ignored at `embedding`.
        tower: `decoder` or `vision`.
        positions: `all`, `image`, `after_image` or `predicting`, as the queries of `AttentionEdit`.
        branch: `"main"` or the key of a branch.
        when: `prefill`, `decode` or `both`.
        depends_on_end: Whether what it does in the prompt depends on the text behind the images, so that a look cannot run
            the images once for many questions; None: it does, unless `when="decode"` or it is a
            `Turn`, `Project` or `Shift` of a tensor.
        observes: Whether it only looks: what it returns is left out, and nothing changes. What it keeps in `gen.rows` in the decoder
            follows beams and looks.
    """

    site: Literal["mlp", "attention", "residual", "embedding"]
    edit: Operation | Turn | Project | Shift
    layers: Depth = (0.0, 1.0)
    tower: Literal["decoder", "vision"] = "decoder"
    positions: Literal["all", "image", "after_image", "predicting"] = "all"
    branch: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"
    depends_on_end: bool | None = None
    observes: bool = False

    def __post_init__(self) -> None:
        rename_value(self, "positions", OLD_POSITIONS)
        _check_choices(self, site=SITES, tower=("decoder", "vision"), positions=(*QUERIES, "image"), when=WHEN)
        is_named = isinstance(self.edit, (Turn, Project, Shift))
        if not is_named:
            _check_function("HiddenEdit.edit", self.edit)
        if self.tower == "vision" and (self.site, self.positions, self.when) not in VISION:
            raise InputError(
                "In the vision tower a HiddenEdit works on whole images, once, when they are encoded: leave out positions, and "
                'when="decode", and choose mlp, attention or residual.'
            )
        _check_switch("HiddenEdit.observes", self.observes)
        if self.observes and is_named:
            raise InputError("A HiddenEdit that observes takes a function: Turn, Project and Shift only change states.")


@dataclass(frozen=True)
class Readout:
    """Read next-token logits of chosen layers of main; all of a forward in one stacked head product.

    Args:
        layers: Which layers' outputs: floats are fractions of the depth, whole numbers count outputs from 1 to the
            depth; 0 is the token embeddings, any other fraction at least the first layer. Equal layers are read once.
        final_norm: Whether the model's final norm is applied first.
        online: Compute each as soon as its layer has run, for edits of later layers (`view.readout`).
    """

    layers: tuple[float, ...]
    final_norm: bool = True
    online: bool = False


def _check_choices(edit: object, **choices: Collection[str]) -> None:
    """Refuse a field that is none of its choices, where the edit would silently apply nowhere."""
    for name, choices_of_field in choices.items():
        value = getattr(edit, name)
        if not isinstance(value, str) or value not in choices_of_field:
            hint = nearest(value, choices_of_field)
            raise InputError(f"{type(edit).__name__}.{name} cannot be {quote(value)}.{hint}")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {quote(value)}.")


def _check_function(name: str, value: object) -> None:
    if not callable(value):
        raise InputError(f"{name} must be a function, got {quote(value)}.")


def layer_range(layers: Depth, depth: int) -> range:
    """Return the indices of the layers in a half-open range of fractions or numbers; at least one.

    Raises:
        InputError: The range lies outside the model.
    """
    if not isinstance(layers, (tuple, list)) or len(layers) != 2:  # noqa: PLR2004 - where it starts and ends
        raise InputError(f"Layers are a pair, the second one excluded, got {quote(layers)}.")
    start, stop = (layer_index(layer, depth) for layer in layers)
    if not 0 <= start <= stop <= depth or (start == depth and not isinstance(layers[0], float)):
        raise InputError(f"Layers {tuple(layers)} lie outside a decoder of {depth} layers.")
    start = min(start, depth - 1)
    return range(start, max(stop, start + 1))


def layer_index(layer: float, depth: int) -> int:
    """Return a layer as a number: floats are fractions of the depth.

    Raises:
        InputError: It is no number.
    """
    if isinstance(layer, bool) or not isinstance(layer, (int, float)) or not math.isfinite(layer):
        raise InputError(f"A layer is a whole number or a fraction of the depth, got {quote(layer)}.")
    return round(layer * depth) if isinstance(layer, float) else int(layer)


def readout_layers(readout: Readout, depth: int) -> tuple[int, ...]:
    """Return the layer outputs (1 to the depth, 0 the embeddings) that a readout names, each once, in its order.

    Raises:
        InputError: A layer outside the model.
    """
    indices = [layer_index(layer, depth) for layer in readout.layers]
    for index, layer in zip(indices, readout.layers, strict=True):
        if not 0 <= index <= depth:
            raise InputError(f"Readout of layer {layer} lies outside a decoder of {depth} layers (0 to {depth}).")
    named = zip(indices, readout.layers, strict=True)
    return tuple(dict.fromkeys(max(index, 1) if layer else 0 for index, layer in named))
