"""Collages as a benchmark: pictures with names, questions about what language expects and what is there instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, get_args

from PIL import Image

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.collage.folders import default_folder
from lvlm_guard.testbed.collage.measures import collage_measures
from lvlm_guard.testbed.collage.world.captions import DESCRIBE, caption
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.mentions import read_mentions
from lvlm_guard.testbed.collage.world.picture_parts import BUILD, open_pictures
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.questions import balanced_questions
from lvlm_guard.testbed.collage.world.scenes import CollageScene
from lvlm_guard.testbed.collage.world.splits import RENDERING, scene, twins
from lvlm_guard.testbed.items import caption_item, question_item, question_name
from lvlm_guard.testbed.scoring import CAPTION

PARSER = "ours"
SHORT_TOKENS = 4
CAPTION_TOKENS = 64
Split = Literal["shift", "iid", "calibration"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True)
class Collage:
    """Questions about collages, and captions of them. Figures say nothing about other models than the one they are of.

    Scenes come in twins: what one keeps of the habits of language the other breaks, and every question is put about both, with
    different truths. So whoever does not look is right half the time: by habit, against it, by always "yes". A caption is
    an item of level "object"; half of the captioned scenes keep the pair that they were made for, the others break it.
    Items of twins are resampled together.

    Args:
        split: "shift", whose pictures are of the other rendering than those of the training, "iid", whose scenes are new and
            their pictures known, or "calibration", as "iid": settings are chosen on it, nothing is reported on it.
        count: Twins. More twins add items and change none.
        seed: The same seed draws the same scenes.
        captions: At most so many captions, in pairs of twins; None asks for all.
        questions: Questions are put about so many twins, the first ones; None asks about all.

    Raises:
        InputError: A split, count, seed, number of captions or of twins with questions that there cannot be.
    """

    name: ClassVar[str] = "collage"
    title: ClassVar[str] = "Collages of pictures with names"
    levels: ClassVar[tuple[Level, ...]] = LEVELS
    licence: ClassVar[str] = f"scenes Apache-2.0, drawn on demand; pictures MIT and Apache-2.0, fetched by `{BUILD}`"
    homepage: ClassVar[str] = ""
    required: ClassVar[tuple[Required, ...]] = ()
    parsers: ClassVar[tuple[str, ...]] = (PARSER,)

    split: Split = "shift"
    count: int = 60
    seed: int = 0
    captions: int | None = None
    questions: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.split not in SPLITS:
            raise InputError(f"collage: no split named {self.split!r}.{nearest(self.split, SPLITS)}")
        if self.count < 1 or self.seed < 0 or min(self.captions or 0, self.questions or 0) < 0:
            raise InputError(
                f"collage: count must be at least 1, seed, captions and questions not negative; got count {self.count}, "
                f"seed {self.seed}, captions {self.captions}, questions {self.questions}."
            )

    def load(self, data: Path | None) -> Loaded:  # noqa: ARG002 - the pictures have a folder of their own
        """Return the items of all twins, one after the other.

        Raises:
            InputError: The pictures are not there; names the command that fetches them.
        """
        _pictures(RENDERING[self.split], default_folder())
        question_count = self.count if self.questions is None else self.questions
        caption_count = self.count if self.captions is None else self.captions // 2
        items: list[Item] = []
        for number in range(self.count):
            items += self._question_items(number) if number < question_count else ()
            items += self._caption_items(number) if number < caption_count else ()
        return Loaded(items)

    def _question_items(self, number: int) -> Iterator[Item]:
        for drawn, question in balanced_questions(twins(self.split, number, self.seed)):
            broken, cluster = _broken_level(drawn), self._cluster(number)
            name = question_name(question)
            yield question_item(drawn.name, name, question, broken=broken, longest=SHORT_TOKENS, cluster=cluster)

    def _caption_items(self, number: int) -> Iterator[Item]:
        for drawn in twins(self.split, number, self.seed).scenes:
            truth, broken = caption(drawn), _broken_level(drawn)
            cluster = self._cluster(number)
            yield caption_item(drawn.name, DESCRIBE[0], truth, broken=broken, longest=CAPTION_TOKENS, cluster=cluster)

    def _cluster(self, number: int) -> str:
        return f"{self.split}-{self.seed}-twins-{number}"

    def picture(self, data: Path | None, image: str) -> Image.Image:  # noqa: ARG002 - as above
        """Return the picture of the scene of this name: RGB, 224x224.

        Raises:
            InputError: The pictures are not there.
        """
        return self.find(image).draw(_pictures(RENDERING[self.split], default_folder()))

    def find(self, image: str) -> CollageScene:
        """Return the scene that is called so, as the items' pictures are."""
        return scene(self.split, int(image.rsplit("-", 1)[1]), self.seed)

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return what is measured, habit-balanced accuracy over all levels first.

        Raises:
            InputError: There is no such parser.
        """
        if parser not in self.parsers:
            raise InputError(f"collage: no parser is called {parser!r}.{nearest(parser, self.parsers)}")
        return collage_measures()

    def invented(self, item: Item, text: str) -> tuple[tuple[int, int], ...]:
        """Return where a caption names a thing that is not in the picture, with its number, size and colour; () for answers."""
        if item.kind != CAPTION:
            return ()
        present = {mention.name for mention in read_mentions(item.truth)}
        return tuple(mention.span for mention in read_mentions(text) if mention.name not in present)

    def remark(self, item: Item) -> str:
        """Return which thing of its picture is without its partner, in a few words; empty where the pair is whole."""
        number = int((item.image or "").rsplit("-", 1)[1])
        of = twins(self.split, number // 2, self.seed)
        pair = next(contrast for contrast in of.contrasts if contrast.habit == "partner")
        return "" if pair.keeper == number % 2 else f"{pair.subject} without its {habits().partner[pair.subject]}"

    def official(self, answers: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:  # noqa: ARG002 - no script
        """Return nothing: there is no other script than this one."""
        return {}


@cache
def _pictures(rendering: str, folder: Path) -> ThingPictures:
    return open_pictures(rendering, folder)


def _broken_level(drawn: CollageScene) -> str | None:
    return None if drawn.pair_kept else "object"
