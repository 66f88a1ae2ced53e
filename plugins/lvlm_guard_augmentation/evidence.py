"""Put outside evidence into the prompt: a detector's boxes, a retriever's text."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lvlm_guard import Generation, InputEdit, InputError, Insert, ProcessorNeeded, check_returned, hookimpl
from lvlm_guard.fields import Template, Timeout, UserFunction

SIDES = 4
Side = Annotated[float, Field(allow_inf_nan=False)]
Box = tuple[Side, Side, Side, Side, str]


@dataclass(frozen=True)
class Evidence:
    """Put the answer of an outside source about the picture in front of the question, row by row.

    Prompting with outside detections, as MARINE (arXiv 2402.08680) and Woodpecker (arXiv 2310.16045) write them, but
    as plain text in main's own prompt. The source is called as `(picture, question)` and returns text, or boxes
    `(x0, y0, x1, y1, label)` in pixels, which become one sentence each; with `crop` the picture is cut to the smallest
    window that holds all of them. An empty answer adds nothing. `source = None` is neutral.
    """

    name: ClassVar[str] = "evidence"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "arXiv 2402.08680"
    cost: ClassVar[str] = "the source, and a longer prompt"
    neutral: ClassVar[dict[str, None]] = {"source": None}

    source: UserFunction = None
    crop: Annotated[bool, Field(description="cut the picture to the boxes")] = False
    sentence: Annotated[Template, Field(description="what a box is turned into")] = "There is a {}."
    timeout: Timeout = 60.0

    @hookimpl
    def edit_inputs(self, gen: Generation) -> Iterable[InputEdit]:
        """Insert the evidence as text, and crop."""
        if gen.prompt.pictures is None or gen.model.tokenizer is None:
            raise ProcessorNeeded(
                f"'evidence' needs a tokenizer and the picture of each row: see that each row has one picture, and the guard its "
                f"processor. {gen.prompt.pictures_missing}"
            )
        answers = [self._ask(gen, row, picture) for row, picture in enumerate(gen.prompt.pictures)]
        texts = [
            answer
            if isinstance(answer, str)
            else " ".join(self.sentence.replace("{}", str(box[SIDES])) for box in answer)
            for answer in answers
        ]
        if any(texts):
            ids = tuple(gen.tokenize(text) if text else () for text in texts)
            yield InputEdit(tokens=(Insert(place="after_image", per_row=ids),))
        boxes = [answer if isinstance(answer, list) else [] for answer in answers]
        if self.crop and any(boxes):
            yield InputEdit(picture=tuple(partial(_cut_to, each) for each in boxes))

    def _ask(self, gen: Generation, row: int, picture: Any) -> str | list[Box]:
        assert self.source is not None
        answer = gen.call_user_function(self.source, picture, question(gen, row), what="source", timeout=self.timeout)
        needs = "'evidence' needs text or boxes (x0, y0, x1, y1, label): correct the source"
        checked = check_returned(answer, str | tuple[Box, ...], needs)
        return checked.strip() if isinstance(checked, str) else list(checked)


def question(gen: Generation, row: int) -> str:
    """Return the text of the prompt after the image."""
    image = gen.prompt.image_mask[row].nonzero().flatten().tolist()
    ids = gen.prompt.ids[row][image[-1] + 1 if image else 0 :]
    return str(gen.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _cut_to(boxes: list[Any], picture: Any, _: Any) -> Any:
    return cut(picture, boxes)


def cut(picture: Any, boxes: list[Any]) -> Any:
    """Return the smallest window of a picture that holds all boxes, enlarged to its size; without boxes, the picture."""
    if not boxes:
        return picture
    left, top = (max(min(box[side] for box in boxes), 0) for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    window = round(left), round(top), min(round(right), picture.width), min(round(bottom), picture.height)
    if window[0] >= window[2] or window[1] >= window[3]:
        raise InputError(
            f"'evidence' needs boxes inside the picture of {picture.width} x {picture.height}: correct the source, which returned {boxes!r}."
        )
    return picture.crop(window).resize(picture.size)
