"""Look at the picture several times: crops, a zoom, more contrast, mirrored; and pool what is seen."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from lvlm_guard import (
    Branch,
    Exchange,
    Generation,
    Mix,
    ProcessorNeeded,
    StrategyRefused,
    Term,
    check_returned,
    hookimpl,
)
from lvlm_guard.fields import PositiveShare, Strength, Text, Timeout, UserFunction
from lvlm_guard_augmentation.evidence import Box, cut, question

View: TypeAlias = Literal["crop", "zoom", "contrast", "mirrored"]
Sides: TypeAlias = tuple[tuple[Text, Text], ...]
MIRRORED = "mirrored"
CUTOFF = 1
"""Per cent of the darkest and of the lightest pixels that the contrast stretch gives up."""


@dataclass(frozen=True)
class PooledViews:
    """Pool the predictions for several looks at the picture: `softmax` averaged over main (weight 1) and the views.

    Test-time augmentation of classifiers after Krizhevsky et al. (NIPS 2012), who average over five crops of 7/8 of the side and
    their mirror images; side, equal weights and the average of probabilities are theirs. `crop` shows the boxes that `boxes`
    returns for (picture, question), as the strategy `evidence` takes them, enlarged (ViCrop, arXiv 2502.17422, finds its own);
    without `boxes`, windows of `side` in a grid of `grid` x `grid`. `zoom` is the window in the middle, `contrast` stretches the
    range of each colour. `mirrored` shows the mirror image, with the words of `sides` exchanged in the prompt, and their tokens in
    what it predicts; once an answer holds such a word, the mirror image says nothing any more, since its answer would read
    otherwise. With `pool="logits"` the average is that of logits, which is that of log-probabilities. On the bundled model, whose tower was trained on a grid of cells,
    zoom and contrast gained nothing; the mirror image answered 4.4 points more of the left/right questions in which habit misleads, and
    2.5 fewer of those in which it holds (885 questions): it takes the habit out rather than adding evidence. `weight = 0` is neutral.
    """

    name: ClassVar[str] = "views"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "arXiv 2502.17422"
    cost: ClassVar[str] = "one branch for each view; four for crops without boxes"
    neutral: ClassVar[dict[str, float]] = {"weight": 0.0}

    weight: Annotated[Strength, Field(description="weight of each view; main's is 1")] = 1.0
    views: Annotated[tuple[View, ...], Field(min_length=1, max_length=4, description="what is looked at")] = (
        "zoom",
        "contrast",
        "mirrored",
    )
    pool: Annotated[Literal["probabilities", "logits"], Field(description="what is averaged")] = "probabilities"
    side: Annotated[PositiveShare, Field(description="side of a crop or zoom, as a share of the picture's")] = 0.875
    grid: Annotated[int, Field(ge=1, le=8, description="crops along each side where there are no boxes")] = 2
    boxes: Annotated[
        UserFunction, Field(description='function from (picture, question) to boxes, or "package.module:function"')
    ] = None
    sides: Annotated[Sides, Field(min_length=1, max_length=100, description="words that a mirror exchanges")] = (
        ("left", "right"),
    )
    timeout: Timeout = 60.0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch for each look."""
        branches = list(self._list_branches(gen))
        gen.state[self.name] = tuple(branch.key for branch in branches)
        return branches

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Average main and the views."""
        predictions = {key: self._read(gen, key) for key in gen.state[self.name]}
        weights = {key: self._weigh(gen, key) for key in predictions}
        total = 1 + sum(weights.values())
        if self.pool == "logits":
            yield Mix("main", 1 / total - 1)
            yield from (Mix(predictions[key], weights[key] / total) for key in predictions)
        else:
            yield Mix("main", -1.0)
            yield Mix(_average(gen.logits(), [(predictions[key], weights[key]) for key in predictions], total), 1.0)

    def _list_branches(self, gen: Generation) -> Iterator[Branch]:
        if "crop" in self.views and self.boxes is not None:
            yield self._build_box_branch(gen)
        elif "crop" in self.views:
            for place in range(self.grid**2):
                across, down = (
                    _start(index, self.grid, self.side) for index in (place % self.grid, place // self.grid)
                )
                yield _build_branch(("window", self.side, across, down), partial(show_window, self.side, across, down))
        if "zoom" in self.views:
            middle = (1 - self.side) / 2
            yield _build_branch(("window", self.side, middle, middle), partial(show_window, self.side, middle, middle))
        if "contrast" in self.views:
            yield _build_branch(("contrast", CUTOFF), stretch_contrast)
        if MIRRORED in self.views:
            pairs = self._find_pairs(gen)
            yield Branch(("view", MIRRORED, pairs), picture=mirror, tokens=(Exchange(pairs),), depends_on_end=False)

    def _build_box_branch(self, gen: Generation) -> Branch:
        """Return the branch that shows what the user's function points at; a row without boxes shows its picture."""
        if gen.prompt.pictures is None or gen.model.tokenizer is None:
            raise ProcessorNeeded(
                "'views' needs a tokenizer and the picture of each row to ask for boxes: see that each row has one picture, and the guard "
                f"its processor. {gen.prompt.pictures_missing}"
            )
        assert self.boxes is not None
        needs = "'views' needs boxes (x0, y0, x1, y1, label): correct boxes"
        boxes_of_rows = tuple(
            check_returned(
                gen.call_user_function(self.boxes, picture, question(gen, row), what="boxes", timeout=self.timeout),
                tuple[Box, ...],
                needs,
            )
            for row, picture in enumerate(gen.prompt.pictures)
        )
        return Branch(
            ("view", "boxes", boxes_of_rows), picture=tuple(partial(_show_boxes, each) for each in boxes_of_rows)
        )

    def _find_pairs(self, gen: Generation) -> tuple[tuple[int, int], ...]:
        """Return the tokens that a mirror exchanges.

        Raises:
            StrategyRefused: The words are not tokens of their own, in general or in a prompt.
        """
        pairs = tuple(dict.fromkeys(pair for words in self.sides for pair in _tokenize_pair(gen, *words)))
        ids = [token for pair in pairs for token in pair]
        if not pairs or len(set(ids)) < len(ids):
            raise StrategyRefused(
                f"'views' needs words of one token each to mirror, not {self.sides}: give other sides=, or leave 'mirrored' out of views."
            )
        for row in range(len(gen.prompt.ids)):
            self._check_prompt(gen, row, ids)
        gen.state[f"{self.name} pairs"] = torch.tensor(pairs)
        return pairs

    def _check_prompt(self, gen: Generation, row: int, ids: list[int]) -> None:
        """Refuse a prompt in which a word that a mirror exchanges is written with other tokens."""
        in_text = gen.prompt.attention_mask[row].bool() & ~gen.prompt.image_mask[row]
        tokens = gen.prompt.ids[row][in_text].tolist()
        text = str(gen.model.tokenizer.decode(tokens, skip_special_tokens=True))
        words = "|".join(re.escape(word) for pair in self.sides for word in pair)
        written = len(re.findall(rf"\b(?:{words})\b", text, re.IGNORECASE))
        if written != sum(token in ids for token in tokens):
            raise StrategyRefused(
                f"'views' needs every word of {self.sides} in row {row} as a token of its own to mirror: leave 'mirrored' out of views."
            )

    def _read(self, gen: Generation, key: Any) -> Tensor:
        """Return what a view predicts `[rows, positions, vocab]`, a mirrored one as main would say it."""
        logits = gen.logits(key)
        if MIRRORED not in key:
            return logits
        pairs = gen.state[f"{self.name} pairs"].to(logits.device)
        return logits.index_copy(-1, pairs.flatten(), logits[..., pairs.flip(-1).flatten()])

    def _weigh(self, gen: Generation, key: Any) -> Any:
        """Return the weight of a view: a number, or for a mirrored one `[rows, positions]`, 0 behind a word that it exchanges."""
        if MIRRORED not in key:
            return self.weight
        ids = gen.state[f"{self.name} pairs"].to(gen.logits().device).flatten()
        before = torch.isin(gen.generated, ids).any(1, keepdim=True)
        drafts = torch.isin(gen.drafts, ids).cumsum(1).bool()
        is_over = torch.cat([before, before | drafts], dim=1)
        return self.weight * (~is_over).float()


def _build_branch(name: tuple[object, ...], picture: Any) -> Branch:
    return Branch(("view", *name), picture=picture, depends_on_end=False)


def _start(index: int, count: int, side: float) -> float:
    """Return where a window begins, as a share of the side: the first at the edge, the last up to the other one."""
    return (1 - side) * (index / (count - 1) if count > 1 else 0.5)


def _average(main: Tensor, views: list[tuple[Tensor, Any]], total: Any) -> Tensor:
    """Return logits of averaged probabilities that sum up as main's do, fp32 `[rows, positions, vocab]`."""
    main = main.float()
    level = main.logsumexp(-1, keepdim=True) - _log(total)
    parts = [logits.float().log_softmax(-1) + _log(weight) + level for logits, weight in views]
    return torch.logsumexp(torch.stack([main - _log(total), *parts]), dim=0)


def _log(weight: Any) -> Any:
    return weight.log()[..., None] if isinstance(weight, Tensor) else math.log(weight)


def _tokenize_pair(gen: Generation, word: str, opposite: str) -> Iterator[tuple[int, int]]:
    """Yield the tokens of two words in the spellings in which both are one token."""
    unknown = getattr(gen.model.tokenizer, "unk_token_id", None)
    for write in (str, str.capitalize, str.upper):
        for space in ("", " "):
            ids = [gen.tokenize(space + write(word)) for word in (word, opposite)]
            if all(len(each) == 1 and each[0] != unknown for each in ids):
                yield ids[0][0], ids[1][0]


def show_window(side: float, across: float, down: float, picture: Image.Image, _: Any) -> Image.Image:
    """Enlarge a window to the size of the picture; shares of its sides say how large it is and where it begins."""
    left, top = across * picture.width, down * picture.height
    box = (left, top, left + side * picture.width, top + side * picture.height)
    return picture.convert("RGB").resize(picture.size, Image.Resampling.BICUBIC, box=box)


def stretch_contrast(picture: Image.Image, _: Any) -> Image.Image:
    """Stretch the range of each colour."""
    return ImageOps.autocontrast(picture.convert("RGB"), cutoff=CUTOFF)


def mirror(picture: Image.Image, _: Any) -> Image.Image:
    """Exchange left and right."""
    return ImageOps.mirror(picture.convert("RGB"))


def _show_boxes(boxes: tuple[Box, ...], picture: Image.Image, _: Any) -> Image.Image:
    window: Image.Image = cut(picture, list(boxes))
    return window
