"""Asks a model everything about given scenes, keeps what it said, and scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lvlm_guard.bench.scoring.scores import (
    CaptionCounts,
    caption_scores,
    count_caption,
    parse_word,
    parse_yes_no,
    yes_no_scores,
)
from lvlm_guard.outputs import sequences
from lvlm_guard.testbed.world.habits import COLOUR_NAMES
from lvlm_guard.testbed.world.language import DESCRIBE, caption, mentions
from lvlm_guard.testbed.world.questions import NEGATIVES, Question, scored_questions
from lvlm_guard.testbed.world.scenes import Scene

Generate = Callable[..., Any]
"""Anything called like `model.generate`."""

_KINDS = {"attribute": ("colour", "is_colour"), "relation": ("relation", "choice", "vertical")}
_WORDS = {"colour": COLOUR_NAMES, "choice": ("left", "right")}
"""The answers of the questions that are not yes/no."""

SHORT_TOKENS = 3
CAPTION_TOKENS = 44


@dataclass(frozen=True)
class Answer:
    """One prompt, what is true and what was said. `level` is "object", "attribute", "relation" or "caption".

    `habit` is what the habits of the training scenes would have one say, None where there is none; `broken` is the
    level of the habit that the scene breaks.
    """

    scene: str
    split: str
    level: str
    kind: str
    prompt: str
    truth: str
    text: str
    negative: str | None = None
    habit: str | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Cost:
    """Time spent in `generate` and the tokens it made, end tokens included, padding not."""

    seconds: float
    tokens: int

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per generated token, prompt included; 0 where nothing was generated."""
        return 1000 * self.seconds / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Evaluation:
    """The raw answers and what they cost; every score is computed from the answers."""

    answers: tuple[Answer, ...]
    cost: Cost

    def scores(self) -> dict[str, Any]:
        """Scores by level and, for objects, by kind of negative."""
        return score(self.answers)


@dataclass(frozen=True)
class Ask:
    """One prompt about one scene, before it is answered; the fields are those of `Answer`."""

    scene: Scene
    level: str
    kind: str
    prompt: str
    truth: str
    negative: str | None = None
    habit: str | None = None


Choose = Callable[[Scene], Sequence[Question]]


def evaluate(
    generate: Generate,
    processor: Any,
    scenes: Sequence[Scene],
    *,
    questions: Choose = scored_questions,
    captions: bool = True,
    batch: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = True,
    after_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Answers all questions about the scenes and captions them; scenes that break a relation are not captioned.

    `generate` is called like `model.generate`; `options` are handed on to it. `questions` chooses what a scene is
    asked. `after_batch` is called after every call with the number of tokens it generated.
    """
    asks = asked_about(scenes, questions)
    batches = [(part, SHORT_TOKENS) for part in batched(asks, batch)]
    if captions:
        told = [_describe(scene) for scene in scenes if scene.broken is None or scene.broken.level != "relation"]
        batches += [(part, CAPTION_TOKENS) for part in batched(told, batch)]
    answers: list[Answer] = []
    seconds, tokens = 0.0, 0
    for part, limit in tqdm(batches, desc="asking", unit="batch", disable=None if progress else True):
        inputs = prompts(part, processor).to(device)
        begun = time.perf_counter()
        said = _said(generate(**inputs, max_new_tokens=limit, do_sample=False, **options), inputs["input_ids"])
        seconds += time.perf_counter() - begun
        made = int((said != processor.tokenizer.pad_token_id).sum())
        tokens += made
        if after_batch is not None:
            after_batch(made)
        answers += _answers(part, processor.tokenizer.batch_decode(said, skip_special_tokens=True))
    return Evaluation(tuple(answers), Cost(seconds, tokens))


def asked_about(scenes: Sequence[Scene], questions: Choose = scored_questions) -> list[Ask]:
    """Every question about every scene, short ones first, so that batches pad little."""
    asks = [_ask(scene, question) for scene in scenes for question in questions(scene)]
    return sorted(asks, key=lambda ask: len(ask.prompt.split()))


def _ask(scene: Scene, asked: Question) -> Ask:
    return Ask(scene, asked.level, asked.kind, asked.text, asked.answer, asked.negative, asked.habit)


def _describe(scene: Scene) -> Ask:
    return Ask(scene, "caption", "caption", DESCRIBE[0], caption(scene))


def batched(asks: Sequence[Ask], batch: int) -> Iterator[Sequence[Ask]]:
    """The prompts in groups of at most `batch`."""
    return (asks[start : start + batch] for start in range(0, len(asks), batch))


def prompts(part: Sequence[Ask], processor: Any) -> Any:
    """The processor's batch for some prompts with their pictures, left-padded."""
    texts = [processor.apply_chat_template(_message(ask.prompt), add_generation_prompt=True) for ask in part]
    pictures = [ask.scene.picture for ask in part]
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt")


def _message(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def _said(output: Any, prompt: Tensor) -> Tensor:
    """The new tokens alone, whether `generate` returned ids or an output object."""
    return sequences(output)[:, prompt.shape[1] :]


def _answers(part: Sequence[Ask], texts: Sequence[str]) -> list[Answer]:
    return [
        Answer(
            scene=ask.scene.name,
            split=ask.scene.split,
            text=text.strip(),
            broken=ask.scene.broken.level if ask.scene.broken else None,
            **{name: getattr(ask, name) for name in ("level", "kind", "prompt", "truth", "negative", "habit")},
        )
        for ask, text in zip(part, texts, strict=True)
    ]


def is_right(answer: Answer) -> bool:
    """Whether a short answer says what is true."""
    if answer.kind in _WORDS:
        return parse_word(answer.text, _WORDS[answer.kind]) == answer.truth
    return parse_yes_no(answer.text) == (answer.truth == "yes")


def caption_counts(answer: Answer) -> CaptionCounts:
    """Counts the objects a caption names; colours are not counted."""
    named = [category for _, category in mentions(answer.text)]
    return count_caption(named, {category for _, category in mentions(answer.truth)}, len(answer.text.split()))


def score(answers: Sequence[Answer]) -> dict[str, Any]:
    """Scores raw answers: {"object": {negative: ...}, level: {kind: ...}, "caption": ...}, empty levels left out.

    Each kind of negative is scored together with all positives; read `balanced_accuracy` there.
    """
    existence = [answer for answer in answers if answer.kind == "existence"]
    described = [answer for answer in answers if answer.level == "caption"]
    scores: dict[str, Any] = {}
    if existence:
        scores["object"] = {
            name: _score_existence(existence, wanted) for name, wanted in (*((n, n) for n in NEGATIVES), ("all", None))
        }
    for level, kinds in _KINDS.items():
        if any(answer.level == level for answer in answers):
            scores[level] = {kind: _accuracy(answers, kind) for kind in kinds}
    if described:
        scores["caption"] = asdict(caption_scores([caption_counts(answer) for answer in described]))
        colours = [caption_colours(answer) for answer in described]
        named = sum(one.coloured for one in colours)
        scores["caption"]["miscoloured"] = sum(one.wrong for one in colours) / named if named else 0.0
    return scores


def _score_existence(existence: Sequence[Answer], negative: str | None) -> dict[str, Any]:
    chosen = [a for a in existence if a.truth == "yes" or negative is None or a.negative == negative]
    return asdict(yes_no_scores([parse_yes_no(a.text) for a in chosen], [a.truth == "yes" for a in chosen]))


def _accuracy(answers: Sequence[Answer], kind: str) -> dict[str, float]:
    right = [is_right(answer) for answer in answers if answer.kind == kind]
    return {"accuracy": sum(right) / len(right) if right else 0.0, "n": len(right)}


@dataclass(frozen=True)
class ColourCounts:
    """Of the truly present objects a caption names with a colour: how many, and how many in a wrong one."""

    coloured: int
    wrong: int


def caption_colours(answer: Answer) -> ColourCounts:
    """Counts the colours of a caption; objects that are not there have no true colour and are left out."""
    true = {category: colour for colour, category in mentions(answer.truth)}
    told = [(colour, category) for colour, category in mentions(answer.text) if category in true]
    return ColourCounts(len(told), sum(true[category] != colour for colour, category in told))
