"""The diagnosis of an answer as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis, WordDiagnosis
from lvlm_guard.diagnosis.report.drawing import (
    Curve,
    PictureMap,
    draw_curve,
    draw_heads,
    draw_map,
    encode_picture,
    find_colour,
    has_view,
)
from lvlm_guard.diagnosis.report.templating import environment, write_number

THUMBNAIL = 160
PIECES = 64
"""Pieces of an index page that are written at once."""


@dataclass(frozen=True)
class StripPiece:
    """A piece of the answer: a word, or what stands between two.

    Args:
        text: As it stands there.
        number: The word's number; None between words.
        word: The word; None between words.
        has_panel: Whether there are maps of it.
    """

    text: str
    number: int | None = None
    word: WordDiagnosis | None = None
    has_panel: bool = False

    @property
    def shade(self) -> float:
        """How strong the colour behind it is: words that cannot be asked about and mean nothing by themselves have none."""
        if self.word is None or (self.word.by == "entropy" and not self.word.is_doubtful):
            return 0.0
        return self.word.doubt


@dataclass(frozen=True)
class WordPanel:
    """What is shown of one word.

    Args:
        number: The word's number.
        word: The word.
        maps: Maps over the picture.
        presence: The logit lens over layer outputs, or None.
    """

    number: int
    word: WordDiagnosis
    maps: tuple[PictureMap, ...]
    presence: Curve | None


def render(diagnosis: AnswerDiagnosis, back: str | None = None, model_page: str | None = None) -> str:
    """Return the page of an answer; the same diagnosis gives the same text.

    Args:
        diagnosis: The diagnosis.
        back: Name of the index page, where there is one.
        model_page: Address of the page of the model's diagnosis, where there is one.
    """
    panels = build_panels(diagnosis)
    maps = diagnosis.maps
    picture = diagnosis.pictures[0]
    return (
        environment()
        .get_template("answer.html.jinja")
        .render(
            diagnosis=diagnosis,
            back=back,
            model_page=model_page,
            strip=split_answer(diagnosis, {panel.number for panel in panels}),
            panels=panels,
            first=min(panels, key=lambda panel: -panel.word.doubt).number if panels else None,
            pictures=[encode_picture(each) for each in diagnosis.pictures],
            view=encode_picture(diagnosis.model_view) if has_view(picture, diagnosis.model_view) else None,
            heads=draw_heads(maps.attention) if maps is not None and maps.attention else None,
            number=write_number,
            scale=find_colour,
        )
    )


def render_index(
    answers: Iterable[tuple[str, AnswerDiagnosis]], count: int, model_page: str | None = None
) -> Iterator[str]:
    """Return the page that leads to the pages of several answers, piece by piece.

    Args:
        answers: What the files of each are called, without endings, and the answer; one at a time is held.
        count: How many there are.
        model_page: Address of the page of the model's diagnosis, where there is one.
    """
    entries = (
        (name, diagnosis, encode_picture(diagnosis.pictures[0], THUMBNAIL), split_answer(diagnosis, set()))
        for name, diagnosis in answers
    )
    template = environment().get_template("index.html.jinja")
    stream = template.stream(entries=entries, count=count, number=write_number, model_page=model_page)
    stream.enable_buffering(PIECES)
    return stream


def split_answer(diagnosis: AnswerDiagnosis, with_panels: set[int]) -> list[StripPiece]:
    """Return an answer in pieces, words and what stands between them."""
    pieces, end = [], 0
    for number, word in enumerate(diagnosis.words):
        start, stop = word.span
        if start > end:
            pieces.append(StripPiece(diagnosis.answer[end:start]))
        pieces.append(StripPiece(diagnosis.answer[start:stop], number, word, number in with_panels))
        end = stop
    return [*pieces, StripPiece(diagnosis.answer[end:])] if end < len(diagnosis.answer) else pieces


def build_panels(diagnosis: AnswerDiagnosis) -> list[WordPanel]:
    """Return a panel for every word that has a map or is doubtful."""
    maps = diagnosis.maps
    mapped = set() if maps is None else {*maps.attended, *maps.lens, *maps.occlusion}
    numbers = sorted(mapped | {number for number, word in enumerate(diagnosis.words) if word.is_doubtful})
    return [_build_panel(diagnosis, number) for number in numbers]


def _build_panel(diagnosis: AnswerDiagnosis, number: int) -> WordPanel:
    maps, word = diagnosis.maps, diagnosis.words[number]
    if maps is None:
        return WordPanel(number, word, (), None)
    base = "view" if diagnosis.pictures and has_view(diagnosis.pictures[0], diagnosis.model_view) else "picture"
    drawn = []
    if number in maps.occlusion:
        drawn.append(draw_map("occlusion", "picture", maps.occlusion[number], maps.occlusion_grid))
    if all(maps.grid):
        if number in maps.attended:
            drawn.append(draw_map("attention", base, maps.attended[number], maps.grid))
        if number in maps.lens:
            highest = [max(layers) for layers in zip(*maps.lens[number], strict=True)]
            drawn.append(draw_map("lens", base, highest, maps.grid))
    presence = draw_curve(maps.presence(number)) if number in maps.lens else None
    return WordPanel(number, word, tuple(drawn), presence)
