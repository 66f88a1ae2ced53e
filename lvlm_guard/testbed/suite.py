"""The drawn scenes as a benchmark: complete, offline, with an exactly known truth at all three levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar, Literal, get_args

from PIL import Image

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item, Level
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.suite import Loaded, Required
from lvlm_guard.deprecation import renamed_fields
from lvlm_guard.errors import InputError, nearest
from lvlm_guard.testbed.items import caption_item, question_item, question_name
from lvlm_guard.testbed.measures import Design, suite_measures
from lvlm_guard.testbed.scoring import CAPTION
from lvlm_guard.testbed.world.counterbalance import counterbalance, pair_scenes
from lvlm_guard.testbed.world.language import DESCRIBE, NAMED, caption, mentions
from lvlm_guard.testbed.world.questions import Question, scored_questions
from lvlm_guard.testbed.world.scenes import Scene, scene
from lvlm_guard.testbed.world.sheet import oddity

PARSER = "ours"
SHORT_TOKENS = 3
CAPTION_TOKENS = 44
Split = Literal["counterfactual", "iid", "calibration"]
SPLITS: tuple[str, ...] = get_args(Split)
DESIGNS: tuple[str, ...] = get_args(Design)
FURTHER = 1000
"""Scenes after the last that are looked through for what keeps habits, beside two for each; it takes far fewer."""


@renamed_fields(asked="questions")
@dataclass(frozen=True)
class Scenes:
    """Questions about drawn scenes, and captions of them. Figures say nothing about other models than the one they are of.

    Every question whose answer habit would give is put about two scenes: one that breaks the habit, and one that keeps it (see
    `lvlm_guard.testbed.world.counterbalance`). Half of the captioned scenes keep the habits a caption speaks of, half break one.
    A caption is an item of level "object"; the colours in it are measured at
    level "attribute". `extra` of an item holds `negative`, `habit` and `broken`, as `Question` and `Scene` explain them.

    Args:
        split: "counterfactual", where every scene breaks one habit, "iid", whose scenes are as those of the training, or
            "calibration", which holds both in turn: settings are chosen on it, nothing is reported on it.
        count: Scenes whose broken habits are asked about. Where none of them keeps such a habit, a later one does. More scenes
            add items and change none.
        seed: The same seed draws the same scenes.
        captions: At most so many captions; None asks for one a scene, 0 for none. They come in pairs of a scene that keeps habits
            and one that breaks one, for which later scenes are drawn where there are too few.
        questions: Questions are put about so many scenes, the first ones; None asks about all. Its old name `asked` is
            accepted with a warning.
        design: "balanced", or "one_sided", which the suite was before: scenes that break a habit are asked about that
            alone, so whoever says the opposite of habit is right without looking. It is there to read and to compare old runs, and
            no ground for claims.

    Raises:
        InputError: A split, design, count, seed, number of captions or of scenes with questions that there cannot be.
    """

    name: ClassVar[str] = "scenes"
    title: ClassVar[str] = "Drawn scenes of the testbed"
    levels: ClassVar[tuple[Level, ...]] = LEVELS
    licence: ClassVar[str] = "Apache-2.0, drawn on demand"
    homepage: ClassVar[str] = ""
    required: ClassVar[tuple[Required, ...]] = ()
    parsers: ClassVar[tuple[str, ...]] = (PARSER,)

    split: Split = "counterfactual"
    count: int = 60
    seed: int = 0
    captions: int | None = None
    questions: int | None = None
    design: Design = "balanced"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.split not in SPLITS:
            raise InputError(f"scenes: no split named {self.split!r}.{nearest(self.split, SPLITS)}")
        if self.design not in DESIGNS:
            raise InputError(f"scenes: no design named {self.design!r}.{nearest(self.design, DESIGNS)}")
        if self.count < 1 or self.seed < 0 or min(self.captions or 0, self.questions or 0) < 0:
            raise InputError(
                f"scenes: count must be at least 1, seed, captions and questions not negative; got count {self.count}, "
                f"seed {self.seed}, captions {self.captions}, questions {self.questions}."
            )

    def load(self, data: Path | None) -> Loaded:  # noqa: ARG002 - the protocol passes a folder, this suite needs none
        """Return the items of all scenes, scene after scene; questions about several follow where the last of them is there.

        Raises:
            InputError: The scenes break no habit, so that nothing can be asked.
        """
        drawn = [self.draw(index) for index in range(self.count)]
        questions = self.build_questions(drawn[: self.questions])
        captioned = self._choose_captioned(drawn)
        items: list[Item] = []
        for scene_questions, described in zip_longest(questions, captioned, fillvalue=()):
            items += [_question_item(scene, name, question) for scene, name, question in scene_questions]
            items += [_caption_item(scene) for scene in described]
        if not items:
            raise InputError(
                f"scenes: nothing can be asked about {self.count} scenes of {self.split} with seed {self.seed}. Draw more: "
                f"count={10 * self.count}."
            )
        return Loaded(items)

    def draw(self, index: int) -> Scene:
        """Return the scene of this number."""
        return scene(self.split, index, self.seed)

    def build_questions(self, drawn: Sequence[Scene]) -> Iterator[list[tuple[Scene, str, Question]]]:
        """Yield for each scene the questions that can be asked since it is there, each with its scene and its name there."""
        if self.design == "one_sided":
            return (
                [(drawn_scene, str(at), question) for at, question in enumerate(scored_questions(drawn_scene))]
                for drawn_scene in drawn
            )
        balanced = counterbalance(drawn, self._draw_further(len(drawn)))
        return (
            [(drawn_scene, question_name(question), question) for drawn_scene, question in questions]
            for questions in balanced
        )

    def _draw_further(self, start: int) -> Iterator[Scene]:
        return (self.draw(index) for index in range(start, start + FURTHER + 2 * self.count))

    def _choose_captioned(self, drawn: Sequence[Scene]) -> Iterator[list[Scene]]:
        """Yield for each scene those that can be described since it is there, `captions` in all."""
        described: Iterator[list[Scene]]
        if self.design == "one_sided":
            described = ([] if _broken_level(drawn_scene) == "relation" else [drawn_scene] for drawn_scene in drawn)
        else:
            described = pair_scenes(chain(drawn, self._draw_further(len(drawn))))
        left = len(drawn) + len(drawn) % 2 if self.captions is None else self.captions
        for scenes in described:
            if len(scenes) > left:
                return
            left -= len(scenes)
            yield scenes

    def picture(self, data: Path | None, image: str) -> Image.Image:  # noqa: ARG002 - as above
        """Return the picture of the scene of this name: RGB, 64x64."""
        return self.find(image).picture

    def find(self, image: str) -> Scene:
        """Return the scene that is called so, as the items' pictures are."""
        return self.draw(int(image.rsplit("-", 1)[1]))

    def measures(self, parser: str) -> Sequence[Measure]:
        """Return what is measured, habit-balanced accuracy over all levels first.

        Raises:
            InputError: There is no such parser.
        """
        if parser not in self.parsers:
            raise InputError(f"scenes: no parser is called {parser!r}.{nearest(parser, self.parsers)}")
        return suite_measures(self.design)

    def invented(self, item: Item, text: str) -> tuple[tuple[int, int], ...]:
        """Return where a caption names an object that is not in the picture, its colour included; () for short answers."""
        if item.kind != CAPTION:
            return ()
        present = {category for _, category in mentions(item.truth)}
        return tuple(match.span() for match in NAMED.finditer(text) if match[1].lower() not in present)

    def remark(self, item: Item) -> str:
        """Return which habit the picture of an item breaks, in a few words; empty where it breaks none."""
        drawn = self.find(item.cluster)
        return oddity(drawn.broken) if drawn.broken else ""

    def official(self, said: Sequence[AnsweredItem], parser: str) -> Mapping[str, float | None]:  # noqa: ARG002 - no script
        """Return nothing: there is no other script than this one."""
        return {}


def _question_item(drawn: Scene, name: str, question: Question) -> Item:
    return question_item(drawn.name, name, question, broken=_broken_level(drawn), longest=SHORT_TOKENS)


def _caption_item(drawn: Scene) -> Item:
    truth, broken = caption(drawn), _broken_level(drawn)
    return caption_item(drawn.name, DESCRIBE[0], truth, broken=broken, longest=CAPTION_TOKENS)


def _broken_level(drawn: Scene) -> str | None:
    return drawn.broken.level if drawn.broken else None
