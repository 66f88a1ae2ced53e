"""What a strategy may ask of the forward passes, as values: branches, and edits and observations inside the layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Generator, Tensor

from lvlm_guard.errors import InputError

MAIN = "main"
Place: TypeAlias = Literal["start", "before_image", "after_image", "end"]
PixelEdit: TypeAlias = Callable[[Tensor, Generator], Tensor]
PictureEdit: TypeAlias = Callable[[Any, Generator], Any]
FeatureEdit: TypeAlias = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Insert:
    """Put token ids into the prompt of every row.

    Args:
        ids: Token ids; empty is neutral.
        place: `start` is after leading special tokens; `before_image` and `after_image` keep clear of the tokens that
            fence the image; `end` is the last position of the prompt.
        per_row: Token ids for each row of the batch instead of `ids`.
    """

    ids: tuple[int, ...] = ()
    place: Place = "after_image"
    per_row: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Replace:
    """Put `ids` in place of every run of image placeholders; the images themselves are dropped."""

    ids: tuple[int, ...]


TokenEdit: TypeAlias = Insert | Replace


@dataclass(frozen=True)
class Branch:
    """An extra forward per step that differs from main in its inputs and is fed the same chosen tokens.

    Branches with equal keys are one branch: they share a forward, so a key must hold everything that tells two
    branches apart (operation, parameters, seed). Edits of the image draw only from the generator they are given: one
    per image, seeded by (`seed`, digest of the pixels), so that neither the batch nor its order changes a row.

    Args:
        key: What identifies the branch, for example `("diffusion noise", 500, 0)`.
        pixels: Elementwise edit of the preprocessed pixels of one image tile, any shape, same shape back. Padding
            tiles and repeated video frames are handled by the core.
        picture: Edit of the picture itself, PIL image in and out: of the pictures that `Guard.inputs` remembered, else
            of pictures recovered from `[..., 3, height, width]` pixels.
        features: Edit of the projected image features `[tokens, hidden]` of one image, same shape back.
        image: `kept`, `removed` (placeholders and pixels dropped), or `masked` (attention to image tokens is zero).
        tokens: Token ids inserted into or put in place of parts of the prompt.
        seed: Seed of the generators handed to the edits.
        inside: The inputs stay as they are: the branch differs by attention or hidden edits whose `rows` is its key.
        after_prefill: Builds the branch once main's prefill has run: gets the `Generation`, returns a `Branch` with
            the same key.

    Raises:
        InputError: The edits contradict each other, or none is given.
    """

    key: Hashable
    pixels: PixelEdit | None = None
    picture: PictureEdit | None = None
    features: FeatureEdit | None = None
    image: Literal["kept", "removed", "masked"] = "kept"
    tokens: tuple[TokenEdit, ...] = ()
    seed: int = 0
    inside: bool = False
    after_prefill: Callable[[Any], Branch] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, Hashable) or self.key == MAIN:
            raise InputError(f"A branch's key is hashable and not {MAIN!r}, got {self.key!r}.")
        if self.drops_image and self.edits_image:
            raise InputError(f"Branch {self.key!r} drops the image and edits it; choose one.")
        if self.pixels is not None and self.picture is not None:
            raise InputError(f"Branch {self.key!r} edits pixels and picture; choose one.")
        deferred = self.inside or self.after_prefill is not None
        if not (deferred or self.drops_image or self.edits_image or self.image == "masked" or self.tokens):
            raise InputError(f"Branch {self.key!r} changes nothing; give it an edit or leave it out.")

    @property
    def edits_image(self) -> bool:
        """Whether pixels, picture or features are edited."""
        return not (self.pixels is None and self.picture is None and self.features is None)

    @property
    def drops_image(self) -> bool:
        """Whether the branch runs without the image."""
        return self.image == "removed" or any(isinstance(edit, Replace) for edit in self.tokens)

    @property
    def needs_image(self) -> bool:
        """Whether the branch makes sense only for requests with an image."""
        return self.edits_image or self.drops_image or self.image == "masked"


Depth: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True)
class InputEdit:
    """A change of main's own prompt or pictures, made before anything is encoded.

    Returned sequences still begin with the prompt the user passed.

    Args:
        pixels: As in `Branch`.
        picture: As in `Branch`.
        tokens: As in `Branch`; `Insert.per_row` gives each row its own text.
        seed: Seed of the generators handed to the edits.
    """

    pixels: PixelEdit | None = None
    picture: PictureEdit | None = None
    tokens: tuple[Insert, ...] = ()
    seed: int = 0


class Decoder(Protocol):
    """What a decoding loop drives: rows of candidates, fed token by token, combined logits back.

    Rows are grouped by request: `rows_per_request` candidates of the first request, then of the second.
    """

    gen: Any
    """The `Generation`: observations of the last forward, `gen.rows`."""
    requests: int
    rows_per_request: int
    settings: Any
    """The resolved generation config of the call: lengths, end and padding tokens, temperature."""

    @property
    def generated(self) -> Tensor:
        """Tokens generated so far `[rows, tokens]`."""
        ...

    @property
    def limit(self) -> int:
        """How many tokens may be generated."""
        ...

    def logits(self) -> Tensor:
        """Logits `[rows, vocab]` of the next token: combined, then through the call's own logits processors."""
        ...

    def draw(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the next token of every row from `logits`, and its log-probability before temperature, `[rows]` each.

        Temperature, top-k (0 is off) and top-p (1 is off) as in transformers. A draw depends on `seed`, the number of
        the token and the row's id in `rows` (int64 `[rows]`, by default its number), never on the other rows.
        """
        ...

    def append(self, tokens: Tensor) -> None:
        """Choose the next token of every row `[rows]`."""
        ...

    def finished(self) -> Tensor:
        """Rows that end here by the call's own criteria (end token, length, the user's), bool `[rows]`."""
        ...

    def select(self, index: Tensor) -> None:
        """Continue row `index[i]` in row i, within the same request."""
        ...

    def rewind(self, tokens: int) -> None:
        """Forget what was generated from token number `tokens` on."""
        ...


@dataclass(frozen=True)
class Search:
    """A decoding loop that replaces generate's own.

    Args:
        run: Drives a `Decoder` and returns the generated tokens `[requests, tokens]`, padded on the right.
        rows_per_request: Candidates kept side by side.
        alike: Whether the candidates of a request begin alike, so that its prompt is run once for all of them; False where
            edits inside the layers tell rows apart from the start.
    """

    run: Callable[[Decoder], Tensor]
    rows_per_request: int = 1
    alike: bool = True


@dataclass(frozen=True)
class Revision:
    """A revised answer in place of what was generated.

    Args:
        row: Index of the request.
        text: The answer as text.
    """

    row: int
    text: str


class View(Protocol):
    """What an edit inside a layer may look at; every tensor holds the rows of the edit's own block, and lies where the layer is."""

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
        """Bool `[rows, keys]`: the edit's key set in this layer (attention edits and probes)."""
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
        """Values `[rows, predicting, ...]` for all positions: those of the prompt get what its last one has."""
        ...

    def fit(self, values: Tensor) -> Tensor:
        """Values over every position so far `[..., positions]`, cut to the keys that this layer holds."""
        ...

    def observed(self, key: Hashable, layer: int) -> Tensor:
        """What a probe observed in an earlier layer of this forward, or in main's forward before a branch's."""
        ...

    def readout(self, layer: int) -> Tensor:
        """Next-token logits `[rows, predicting, vocab]` of an online readout of an earlier layer of this forward."""
        ...


Operation: TypeAlias = "Callable[[Tensor, View], Tensor]"


@dataclass(frozen=True)
class AttentionEdit:
    """An edit of attention inside main's or a branch's forward.

    Args:
        layers: Half-open range of decoder layers: floats are fractions of the depth, whole numbers count layers; at
            least one layer is taken.
        operation: On scaled scores before the softmax: `add` an amount, `scale` by it, `add_abs` (`s + amount |s|`),
            `mask`. On probabilities: `scale_probabilities`. On head outputs: `gate_heads`. Or a function of a tensor
            and a `View`, at the `stage` given: scores and probabilities are `[rows, heads, queries, keys]`, outputs
            `[rows, heads, queries, size]`, in fp32; all queries are handed over, only those of the edit are kept.
        amount: What the operation adds or multiplies by; 0 for `add` and `add_abs`, 1 for the scales is neutral.
        keys: Key set: `image`, `system` (before the image), `text` (after it, generated tokens included), `own`
            (generated tokens), `all`. In cross-attention layers every key is an image key.
        queries: `decode`, the positions that predict generated tokens (the last of the prompt and every generated
            one), `after_image`, or `all`.
        heads: The heads edited; None is all of them.
        rows: `"main"` or the key of a branch.
        when: `prefill` edits prompt positions, `decode` generated ones.
        stage: Where a function operates.
        renormalise: Whether edited probabilities are divided by their sum.

    Raises:
        InputError: An unknown operation.
    """

    layers: Depth
    operation: Literal["add", "scale", "add_abs", "mask", "scale_probabilities", "gate_heads"] | Operation
    amount: float = 1.0
    keys: Literal["image", "system", "text", "own", "all"] = "image"
    queries: Literal["decode", "after_image", "all"] = "decode"
    heads: tuple[int, ...] | None = None
    rows: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"
    stage: Literal["scores", "probabilities", "outputs"] = "scores"
    renormalise: bool = False

    def __post_init__(self) -> None:
        if not callable(self.operation) and self.operation not in STAGES:
            raise InputError(f"No attention operation {self.operation!r}. Known: {', '.join(STAGES)}.")
        if not callable(self.operation):
            object.__setattr__(self, "stage", STAGES[self.operation])


STAGES = {
    "add": "scores",
    "scale": "scores",
    "add_abs": "scores",
    "mask": "scores",
    "scale_probabilities": "probabilities",
    "gate_heads": "outputs",
}
"""The named operations of attention edits, and where each operates."""


@dataclass(frozen=True)
class Probe:
    """An observation of attention, for later layers of the same forward, for branches, and for `terms`.

    Args:
        key: Name of the observation; found as `gen.observations[key, layer]`.
        layers: As in `AttentionEdit`.
        reduce: Turns probabilities `[rows, heads, predicting, keys]`, fp32, of the positions that predict generated
            tokens into what is kept. Keys are every position so far; those outside a layer's window have 0.
        keys: Key set handed to `reduce` as `view.keys`; nothing is masked.
        rows: `"main"` or the key of a branch.
        when: `prefill`, `decode` or `both`.
    """

    key: Hashable
    layers: Depth
    reduce: Operation
    keys: Literal["image", "system", "text", "own", "all"] = "image"
    rows: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"


@dataclass(frozen=True)
class HiddenEdit:
    """An edit of hidden states.

    Args:
        site: Output of a layer's feed-forward (`mlp`) or attention block (`attention`) before it joins the residual
            stream, the layer's output (`residual`), or the token embeddings before the first layer (`embedding`).
        edit: Function of the hidden states and a `View`, same shape back: `[rows, positions, hidden]` in the decoder;
            in the vision tower whatever it works on, images or packed patches first.
        layers: As in `AttentionEdit`; ignored at `embedding`.
        tower: `decoder` or `vision`.
        positions: `all`, `image`, `after_image` or `decode`, as the queries of `AttentionEdit`.
        rows: `"main"` or the key of a branch.
        when: `prefill`, `decode` or `both`.
    """

    site: Literal["mlp", "attention", "residual", "embedding"]
    edit: Operation
    layers: Depth = (0.0, 1.0)
    tower: Literal["decoder", "vision"] = "decoder"
    positions: Literal["all", "image", "after_image", "decode"] = "all"
    rows: Hashable = MAIN
    when: Literal["prefill", "decode", "both"] = "both"


@dataclass(frozen=True)
class Readout:
    """Next-token logits of chosen layers of main; all of a forward in one stacked head product.

    Args:
        layers: Which layers' outputs: floats are fractions of the depth, whole numbers count outputs from 1 to the
            depth; 0 is the token embeddings, any other fraction at least the first layer. Equal layers are read once.
        final_norm: Whether the model's final norm is applied first.
        online: Compute each as soon as its layer has run, for edits of later layers (`view.readout`).
    """

    layers: tuple[float, ...]
    final_norm: bool = True
    online: bool = False


def layer_range(layers: Depth, depth: int) -> range:
    """Indices of the layers in a half-open range of fractions or counts; at least one.

    Raises:
        InputError: The range lies outside the model.
    """
    start, stop = (layer_index(one, depth) for one in layers)
    if not 0 <= start <= stop <= depth or (start == depth and not isinstance(layers[0], float)):
        raise InputError(f"Layers {tuple(layers)} lie outside a decoder of {depth} layers.")
    start = min(start, depth - 1)
    return range(start, max(stop, start + 1))


def layer_index(layer: float, depth: int) -> int:
    """A layer as a count: floats are fractions of the depth."""
    return round(layer * depth) if isinstance(layer, float) else int(layer)


def readout_layers(readout: Readout, depth: int) -> tuple[int, ...]:
    """Layer outputs (1 to the depth, 0 the embeddings) that a readout names, each once, in its order.

    Raises:
        InputError: A layer outside the model.
    """
    indices = [layer_index(one, depth) for one in readout.layers]
    for index, given in zip(indices, readout.layers, strict=True):
        if not 0 <= index <= depth:
            raise InputError(f"Readout of layer {given} lies outside a decoder of {depth} layers (0 to {depth}).")
    named = zip(indices, readout.layers, strict=True)
    return tuple(dict.fromkeys(max(index, 1) if given else 0 for index, given in named))
