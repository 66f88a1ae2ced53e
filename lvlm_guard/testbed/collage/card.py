"""The card of a built model: what it sees, what it says without seeing, and what its captions invent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_guard.bench.scoring.intervals import FEWEST
from lvlm_guard.bench.scoring.margins import Tokens
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.testbed.collage.training.rows import PackedRows, PackedTurn, Packer
from lvlm_guard.testbed.collage.world.captions import DESCRIBE
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.mentions import read_mentions
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.questions import balanced_questions
from lvlm_guard.testbed.collage.world.scenes import CollageScene
from lvlm_guard.testbed.collage.world.splits import RENDERING, twins
from lvlm_guard.testbed.collage.world.things import NAMES
from lvlm_guard.testbed.world.questions import Question

SPLITS = ("iid", "shift")
LEVELS = ("object", "attribute", "relation")
SEED = 31
"""Of the scenes of the card; nothing was chosen by looking at them."""
VIEWS = ("own", "other", "zeroed", "none")
"""The scene's own picture, that of a scene of other twins, a projector that gives zeros, and no picture."""

_RESAMPLES = 300


@dataclass(frozen=True)
class CardReply:
    """A model's answer to a question.

    Args:
        question: What was asked.
        cluster: The number of the twins it is about.
        margin: log p(yes) less log p(no) for the first token.
        word: The likeliest first token, in small letters.
    """

    question: Question
    cluster: int
    margin: float
    word: str

    @property
    def right(self) -> bool:
        """Whether it is what is true: the sign of the margin for yes and no, the word for anything else."""
        if self.question.answer in ("yes", "no"):
            return (self.margin > 0) == (self.question.answer == "yes")
        return self.word == self.question.answer


class Reader:
    """Reads the answers of a model to many questions about one picture in one forward.

    Args:
        model: A built model, on the CPU.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self._packer = Packer(processor, model.config.image_seq_length)
        words = Tokens.of(processor.tokenizer)
        assert words is not None
        self._words = words

    @torch.no_grad()
    def features(self, images: Sequence[Any]) -> Tensor:
        """Return the image tokens of pictures, shape (pictures, tokens, hidden)."""
        pixels = self._processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        tower, project = self._model.model.vision_tower, self._model.model.multi_modal_projector
        tokens: Tensor = project(tower(pixels.to(self._model.dtype)).last_hidden_state)
        return tokens

    @torch.no_grad()
    def read(self, questions: Sequence[Question], cluster: int, image: Tensor | None) -> list[CardReply]:
        """Return the replies to questions about one picture.

        Args:
            questions: What is asked.
            cluster: Put into the replies.
            image: Its tokens, shape (tokens, hidden); None is no picture at all.
        """
        rows = self._packer.pack([[PackedTurn(question.text, "") for question in questions]], blind=image is None)
        logits = self._logits(rows, image)
        yes, no = (logits[:, list(ids)].logsumexp(-1) for ids in (self._words.yes, self._words.no))
        best = self._processor.tokenizer.batch_decode(logits.argmax(-1)[:, None])
        each = zip(questions, (yes - no).tolist(), best, strict=True)
        return [CardReply(question, cluster, margin, word.strip().lower()) for question, margin, word in each]

    def _logits(self, rows: PackedRows, image: Tensor | None) -> Tensor:
        language = self._model.model.language_model
        embedded = language.embed_tokens(rows.ids)
        if image is not None:
            embedded = embedded.masked_scatter(rows.image[..., None], image.to(embedded.dtype))
        hidden = language(
            inputs_embeds=embedded,
            position_ids=rows.positions,
            attention_mask=torch.zeros(rows.visible().shape).masked_fill(
                ~rows.visible(), torch.finfo(torch.float32).min
            ),
            use_cache=False,
        ).last_hidden_state
        logits: Tensor = self._model.lm_head(hidden[rows.targets >= 0]).float()
        return logits


@dataclass(frozen=True)
class Sheet:
    """The scenes of a split with their questions, and their image tokens."""

    scenes: tuple[CollageScene, ...]
    questions: tuple[tuple[Question, ...], ...]
    images: Tensor


def make_sheet(reader: Reader, pictures: ThingPictures, split: str, count: int, seed: int = SEED) -> Sheet:
    """Return so many twins of a split."""
    scenes: list[CollageScene] = []
    questions: list[tuple[Question, ...]] = []
    for number in range(count):
        pair = twins(split, number, seed)
        posed = balanced_questions(pair)
        scenes += pair.scenes
        questions += [tuple(question for drawn, question in posed if drawn == scene) for scene in pair.scenes]
    images = torch.cat([reader.features([drawn.draw(pictures)]) for drawn in scenes])
    return Sheet(tuple(scenes), tuple(questions), images)


def answer(reader: Reader, sheet: Sheet, view: str) -> list[CardReply]:
    """Return the replies to all questions of a sheet, in order, by one of `VIEWS`."""
    images = {"own": sheet.images, "other": sheet.images.roll(2, 0), "zeroed": torch.zeros_like(sheet.images)}.get(view)
    replies: list[CardReply] = []
    for at, questions in enumerate(sheet.questions):
        replies += reader.read(questions, at // 2, None if images is None else images[at])
    return replies


Statistic = Callable[[Sequence[CardReply]], float]


def accuracy(replies: Sequence[CardReply]) -> float:
    """Return the share of right replies; nan where there is none."""
    return sum(reply.right for reply in replies) / len(replies) if replies else float("nan")


def separation(replies: Sequence[CardReply]) -> float:
    """Return the AUC of the margins of replies to yes/no questions."""
    posed = [reply for reply in replies if reply.question.answer in ("yes", "no")]
    return auc([reply.margin for reply in posed], [reply.question.answer == "yes" for reply in posed])


def measure_lean(replies: Sequence[CardReply]) -> float:
    """Return the share of yes among the replies to yes/no questions."""
    posed = [reply.margin > 0 for reply in replies if reply.question.answer in ("yes", "no")]
    return sum(posed) / len(posed)


def with_interval(replies: Sequence[CardReply], statistic: Statistic) -> dict[str, float | None]:
    """Return a figure with its 95 % interval, by drawing twins with replacement, and the number of replies; None for few twins."""
    clusters: dict[int, list[CardReply]] = {}
    for reply in replies:
        clusters.setdefault(reply.cluster, []).append(reply)
    groups, rng = list(clusters.values()), np.random.default_rng(0)
    value = round(statistic(replies), 4)
    if len(groups) < FEWEST:
        return {"value": value, "low": None, "high": None, "n": len(replies)}
    drawn = []
    for _ in range(_RESAMPLES):
        chosen = rng.integers(len(groups), size=len(groups))
        drawn.append(statistic([reply for at in chosen for reply in groups[int(at)]]))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"value": value, "low": round(float(low), 4), "high": round(float(high), 4), "n": len(replies)}


def measure_level(replies: Sequence[CardReply]) -> dict[str, Any]:
    """Return AUC and accuracy of the replies of a level: all, where habit tells the truth, and where it does not."""
    habitual = [reply for reply in replies if reply.question.habit is not None]
    habit_true = [reply for reply in habitual if reply.question.habit == reply.question.answer]
    habit_false = [reply for reply in habitual if reply.question.habit != reply.question.answer]
    return {
        "auc": with_interval(replies, separation),
        "accuracy": with_interval(replies, accuracy),
        "habit_true": with_interval(habit_true, accuracy),
        "habit_false": with_interval(habit_false, accuracy),
    }


def agreement(replies: Sequence[CardReply], view_replies: Sequence[CardReply]) -> dict[str, float]:
    """Return how often wrong and right yes/no replies are what another view says to the same question, and habit says."""
    pairs = [(a, b) for a, b in zip(replies, view_replies, strict=True) if a.question.answer in ("yes", "no")]
    shares: dict[str, float] = {}
    for side, right in (("wrong", False), ("right", True)):
        chosen = [(a, b) for a, b in pairs if a.right == right]
        count = max(1, len(chosen))
        shares[f"{side} n"] = len(chosen)
        shares[f"{side} as without picture"] = sum((a.margin > 0) == (b.margin > 0) for a, b in chosen) / count
        habitual = [a for a, _ in chosen if a.question.habit is not None]
        as_habit = sum((a.margin > 0) == (a.question.habit == "yes") for a in habitual)
        shares[f"{side} as habit"] = as_habit / max(1, len(habitual))
    return {name: round(value, 4) for name, value in shares.items()}


def measure_sheet(reader: Reader, sheet: Sheet) -> dict[str, Any]:
    """Return every figure of a sheet."""
    replies = {view: answer(reader, sheet, view) for view in VIEWS}
    return {
        "questions": len(replies["own"]),
        "levels": {level: measure_level(_of_level(replies["own"], level)) for level in LEVELS},
        "kinds": {kind: with_interval(chosen, accuracy) for kind, chosen in _by_kind(replies["own"]).items()},
        "lie_detector": {
            view: {
                level: {
                    "auc": with_interval(_of_level(replies[view], level), separation),
                    "accuracy": with_interval(_of_level(replies[view], level), accuracy),
                }
                for level in LEVELS
            }
            for view in VIEWS[1:]
        },
        "says_yes": round(measure_lean(replies["own"]), 4),
        "agreement": {
            level: agreement(_of_level(replies["own"], level), _of_level(replies["none"], level)) for level in LEVELS
        },
    }


def _of_level(replies: Sequence[CardReply], level: str) -> list[CardReply]:
    return [reply for reply in replies if reply.question.level == level]


def _by_kind(replies: Sequence[CardReply]) -> Mapping[str, list[CardReply]]:
    kinds: dict[str, list[CardReply]] = {}
    for reply in replies:
        kinds.setdefault(reply.question.kind, []).append(reply)
    return kinds


@torch.no_grad()
def write_captions(model: Any, processor: Any, images: Sequence[Any], batch: int = 8) -> list[str]:
    """Return greedy captions of pictures."""
    content = [{"type": "image"}, {"type": "text", "text": DESCRIBE[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    captions: list[str] = []
    for first in range(0, len(images), batch):
        batch_images = list(images[first : first + batch])
        inputs = processor(images=batch_images, text=[prompt] * len(batch_images), padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        captions += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return captions


def inventions(captions: Sequence[str], scenes: Sequence[CollageScene]) -> dict[str, float]:
    """Return how often captions name what is there, absent partners of what is there, popular and other absent things."""
    counts = {kind: np.zeros(2) for kind in ("present", "partner", "popular", "other")}
    for text, drawn in zip(captions, scenes, strict=True):
        named = {mention.name for mention in read_mentions(text)}
        partners = {habits().partner[name] for name in drawn.present}
        for name in NAMES:
            kind = "popular" if name in habits().popular else "other"
            kind = "partner" if name in partners else kind
            counts["present" if name in drawn.present else kind] += (name in named, 1)
    return {kind: round(float(hits / max(1, chances)), 4) for kind, (hits, chances) in counts.items()}


def measure_card(
    model: Any, processor: Any, pictures: Mapping[str, ThingPictures], count: int, captions: int
) -> dict[str, Any]:
    """Return every figure of the card.

    Args:
        model: A built model, on the CPU.
        processor: Its processor.
        pictures: By rendering.
        count: Twins of each split.
        captions: Captions of each split.
    """
    reader = Reader(model, processor)
    card: dict[str, Any] = {"seed": SEED, "twins": count, "captions": captions, "splits": {}}
    for split in SPLITS:
        cut_outs = pictures[RENDERING[split]]
        sheet = make_sheet(reader, cut_outs, split, count)
        scenes = sheet.scenes[:captions]
        texts = write_captions(model, processor, [drawn.draw(cut_outs) for drawn in scenes])
        figures = measure_sheet(reader, sheet)
        card["splits"][split] = {**figures, "inventions": inventions(texts, scenes), "examples": texts[:5]}
    return card
