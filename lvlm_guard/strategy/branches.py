"""Changes of the inputs: branches beside main, and main's own prompt and pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Generator, Tensor

from lvlm_guard.errors import InputError, quote

MAIN = "main"
IMAGES = ("kept", "removed", "masked")
Place: TypeAlias = Literal["start", "before_image", "after_image", "end"]
"""Where `Insert` puts tokens into the prompt."""

PixelEdit: TypeAlias = Callable[[Tensor, Generator], Tensor]
"""Maps pixel values of one request, and a seeded generator on the CPU, to pixel values of the same shape."""

PictureEdit: TypeAlias = Callable[[Any, Generator], Any]
"""Maps one picture as the user passed it, and a seeded generator on the CPU, to another picture."""
PictureEdits: TypeAlias = PictureEdit | tuple[PictureEdit, ...]
"""One edit for all pictures, or a tuple with one for each of `gen.prompt.pictures`."""

FeatureEdit: TypeAlias = Callable[[Tensor, Generator], Tensor]
"""Maps image features, and a seeded generator on the CPU, to features of the same shape."""


@dataclass(frozen=True)
class Insert:
    """Put token ids into the prompt of every row.

    Args:
        ids: Token ids; empty is neutral.
        place: `start` is after leading special tokens; `before_image` and `after_image` keep clear of the tokens that
            fence the image, and are `start` where the image stands beside the prompt; `end` is the last position of the prompt.
        per_row: Token ids for each row of the batch instead of `ids`.
    """

    ids: tuple[int, ...] = ()
    place: Place = "after_image"
    per_row: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Replace:
    """Put `ids` in place of every run of image placeholders; the images themselves are dropped."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Exchange:
    """Put each of two token ids in place of the other one, everywhere in the prompt but at images.

    Args:
        pairs: The ids, two by two, no id twice. Other edits of the prompt find the exchanged tokens.

    Raises:
        InputError: An id stands in two pairs, or an entry is no pair.
    """

    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        is_pairs = isinstance(self.pairs, (tuple, list)) and all(
            isinstance(pair, (tuple, list)) and len(pair) == 2  # noqa: PLR2004 - a pair
            for pair in self.pairs
        )
        if not is_pairs or len(set(self.ids)) < len(self.ids):
            raise InputError(f"Exchange.pairs are pairs of token ids, no id twice, got {quote(self.pairs)}.")

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id."""
        return tuple(token for pair in self.pairs for token in pair)

    @property
    def partners(self) -> dict[int, int]:
        """The id that comes in place of each."""
        return {pair[index]: pair[1 - index] for pair in self.pairs for index in (0, 1)}


TokenEdit: TypeAlias = Insert | Replace | Exchange
"""A change of the prompt's tokens."""


@dataclass(frozen=True)
class Branch:
    """Run an extra forward per step that differs from main in its inputs and gets the same chosen tokens.

    Branches with equal keys are one branch: they share a forward, so a key must hold everything that tells two
    branches apart (operation, parameters, seed). Edits of the image draw only from the generator that they receive: one
    per image, seeded by (`seed`, digest of the pixels), so that neither the batch nor its order changes a row.

    Args:
        key: Identifies the branch, for example `("diffusion noise", 500, 0)`.
        pixels: Elementwise edit of the preprocessed pixels of one image tile, of one frame of a video, or of all patches of an
            image or a video; any shape, same shape back. The tiles of an image share its generator, as the frames of a video do.
            Padding and repeated frames are handled by the core.
        picture: Edit of the picture itself, PIL image in and out: of the pictures that `Guard.inputs` remembered, else
            of pictures recovered from `[..., 3, height, width]` pixels. Or a tuple with an edit for each of
            `gen.prompt.pictures`.
        features: Edit of the projected image features `[tokens, hidden]` of one image, same shape back.
        image: `kept`, `removed` (pixels, placeholders and what the processor wrote round them dropped), or `masked` (attention to image tokens is zero).
        tokens: Token ids inserted into the prompt, put in place of its images, or exchanged in it.
        seed: Seed of the generators handed to the edits.
        inside: The inputs stay as they are: the branch differs by attention or hidden edits whose `branch` is its key.
        after_prefill: Builds the branch once main's prefill has run: gets the `Generation`, returns a `Branch` with
            the same key.
        depends_on_end: Whether what its functions make of the images depends on the text behind them, so that a look
            cannot run the images once for many questions; None: as if it does, where there is a function.

    Raises:
        InputError: The edits contradict each other, or none is given.
    """

    key: Hashable
    pixels: PixelEdit | None = None
    picture: PictureEdits | None = None
    features: FeatureEdit | None = None
    image: Literal["kept", "removed", "masked"] = "kept"
    tokens: tuple[TokenEdit, ...] = ()
    seed: int = 0
    inside: bool = False
    after_prefill: Callable[[Any], Branch] | None = None
    depends_on_end: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, Hashable) or (isinstance(self.key, str) and self.key == MAIN):
            raise InputError(f"A branch's key is hashable and not {MAIN!r}, got {quote(self.key)}.")
        if not isinstance(self.inside, bool) or not isinstance(self.image, str) or self.image not in IMAGES:
            raise InputError(
                f"Branch.inside is true or false and Branch.image one of {', '.join(IMAGES)}, got {quote(self.inside)} and "
                f"{quote(self.image)}."
            )
        if not isinstance(self.tokens, (tuple, list)) or not all(isinstance(edit, TokenEdit) for edit in self.tokens):
            raise InputError(f"Branch.tokens are Insert, Replace and Exchange values, got {quote(self.tokens)}.")
        if self.drops_image and self.edits_image:
            raise InputError(f"Branch {self.key!r} drops the image and edits it; choose one.")
        if self.pixels is not None and self.picture is not None:
            raise InputError(f"Branch {self.key!r} edits pixels and picture; choose one.")
        deferred = self.inside or self.after_prefill is not None
        if not (deferred or self.drops_image or self.edits_image or self.image == "masked" or self.tokens):
            raise InputError(f"Branch {self.key!r} changes nothing; give it an edit or leave it out.")

    @classmethod
    def without_image(cls, placeholder: int | None = None) -> Branch:
        """Return the branch that asks main's prompt without the image; strategies that use it share one forward.

        Args:
            placeholder: Id of a token that stands in place of each image; None drops the image and the tokens that
                fence it.
        """
        if placeholder is None:
            return cls(("no image",), image="removed")
        return cls(("image replaced by", placeholder), tokens=(Replace((placeholder,)),))

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


@dataclass(frozen=True)
class InputEdit:
    """Change main's own prompt or pictures, before anything is encoded.

    Returned sequences still begin with the prompt the user passed.

    Args:
        pixels: As in `Branch`.
        picture: As in `Branch`.
        tokens: As in `Branch`; `Insert.per_row` gives each row its own text.
        seed: Seed of the generators handed to the edits.
    """

    pixels: PixelEdit | None = None
    picture: PictureEdits | None = None
    tokens: tuple[Insert, ...] = ()
    seed: int = 0
