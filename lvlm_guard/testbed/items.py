"""Questions and captions of a world as items of a suite."""

from __future__ import annotations

from lvlm_guard.bench.items import LEVELS, Item, Level
from lvlm_guard.testbed.scoring import CAPTION
from lvlm_guard.testbed.world.questions import Question

_LEVEL: dict[str, Level] = {name: name for name in LEVELS}


def question_name(question: Question) -> str:
    """Name a question within its scene by its words."""
    return "-".join(question.text.removesuffix("?").split())


def question_item(
    scene: str, name: str, question: Question, *, broken: str | None, longest: int, cluster: str = ""
) -> Item:
    """Return a question as an item.

    Args:
        scene: The name of the scene.
        name: The name of the question in it.
        question: The question.
        broken: The level of the habit that the scene breaks, None where it breaks none.
        longest: Tokens of the answer.
        cluster: As in `Item`.
    """
    return Item(
        id=f"{scene}/{name}",
        image=scene,
        prompt=question.text,
        truth=question.answer,
        level=_LEVEL[question.level],
        kind=question.kind,
        max_new_tokens=longest,
        cluster=cluster,
        extra={"negative": question.negative, "habit": question.habit, "broken": broken},
    )


def caption_item(scene: str, prompt: str, truth: str, *, broken: str | None, longest: int, cluster: str = "") -> Item:
    """Return what asks for a caption as an item; `truth` is a true one."""
    return Item(
        id=f"{scene}/{CAPTION}",
        image=scene,
        prompt=prompt,
        truth=truth,
        level="object",
        kind=CAPTION,
        max_new_tokens=longest,
        cluster=cluster,
        extra={"negative": None, "habit": None, "broken": broken},
    )
