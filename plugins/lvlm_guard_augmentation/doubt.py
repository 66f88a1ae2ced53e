"""A doubt for every word of an answer: what the model says when it is asked about the word, else how unsure it was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import Generation, GuardError, ProcessorNeeded, Revision, check_returned, hookimpl
from lvlm_guard.fields import Count, Template, Text, Timeout, UserFunction
from lvlm_guard_augmentation.answer_words import AnswerWord, split_words
from lvlm_guard_augmentation.claims import Wording
from lvlm_guard_augmentation.revise import COLOURS
from lvlm_guard_augmentation.word_claims import WordClaim, WordLevel, find_word_claims

AT_ONCE = 32
"""Questions of one batch."""
ENTROPIES = "doubt"
"""Under which rows keep entropies, and `gen.state` those of candidates."""
Words = Annotated[str, Field(pattern=r"\S")]
FARTHEST = 700.0
"""Margins beyond it count as it, since the exponential of a number a little greater is none."""


@dataclass(frozen=True)
class Doubt:
    """Leave a doubt in [0, 1] for every word in the report, and change nothing.

    `1 - exp(-entropy)` of the token that the word begins with, which costs nothing: 0 where the model had no choice. With `ask`,
    words about the picture (an object after an article, a colour in front of it, a number, "left of" and the like) are asked
    about, "is there a mug", once the answer is there: their doubt is `sigmoid(-margin)`, the margin being that of yes over no
    where the answer to the question begins (`gen.margins`). `report.results["doubt"]` holds a row for every answer, as it was
    before any revision: its text, and for each word its place, tokens, level, question, margin, entropy, the greatest
    probability, doubt, and whether the doubt goes by `margin` or `entropy`; `not_asked` says why words that could be asked about
    were not.
    """

    name: ClassVar[str] = "doubt"
    family: ClassVar[str] = "observation"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "an entropy for each token; with `ask`, a question for each word about the picture"
    observes: ClassVar[bool] = True

    ask: Annotated[bool, Field(description="whether words about the picture are asked about")] = False
    question: Annotated[Template, Field(description="question about an object")] = "Is there a {} in the image?"
    attribute_question: Annotated[Text, Field(description="with {name} and {value}")] = "Is the {name} {value}?"
    relation_question: Annotated[Text, Field(description="with {name}, {direction} and {reference}")] = (
        "Is the {name} {direction} the {reference}?"
    )
    number_question: Annotated[Text, Field(description="with {number} and {name}")] = (
        "Are there {number} {name} in the image?"
    )
    values: Annotated[tuple[Words, ...], Field(description="words that are attributes; none: colours")] = ()
    most: Annotated[Count, Field(description="questions about one answer; the words of most entropy come first")] = 200
    reader: Annotated[
        UserFunction,
        Field(
            description='function from an answer to (start, end, level, question) of its words, or "package.module:function"'
        ),
    ] = None
    timeout: Timeout = 60.0

    @property
    def asks(self) -> bool:
        """Whether the model is asked once the answer is there."""
        return self.ask

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse a call whose answer cannot be read."""
        if gen.model.tokenizer is None:
            raise ProcessorNeeded("'doubt' needs a tokenizer: give the guard the processor, Guard(model, processor).")
        gen.state[ENTROPIES] = {}

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep entropy and greatest probability of what generate receives."""
        measures = gen.statistics.entropy(gen.combined), gen.statistics.max_probability(gen.combined)
        values = torch.stack(measures, dim=-1)
        if gen.prompt.rows_per_request == 1:
            gen.rows.append(ENTROPIES, values)
        else:
            _keep_by_path(gen, values)

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Leave the doubts in the report."""
        each = max(len(gen.output_ids) // len(gen.prompt.ids), 1)
        gen.results[self.name] = [
            self._judge(gen, row // each, ids, _find_measures(gen, row, row // each, ids))
            for row, ids in enumerate(gen.output_ids)
        ]
        return ()

    def find_claims(self, gen: Generation, text: str) -> list[WordClaim]:
        """Return what the words of an answer claim.

        Raises:
            InputError: `reader` returned something else.
        """
        if self.reader is None:
            wording = Wording(self.question, self.attribute_question, self.relation_question)
            return find_word_claims(text, wording, self.number_question, self.values or COLOURS)
        claims = gen.call_user_function(self.reader, text, what="reader", timeout=self.timeout)
        needs = "'doubt' needs (start, end, level, question) of words"
        entries = check_returned(claims, tuple[tuple[int, int, WordLevel, str], ...], needs)
        return [WordClaim(start, end, level, question, "") for start, end, level, question in entries]

    def _judge(
        self, gen: Generation, request: int, ids: Tensor, measure: Callable[[int], list[float]]
    ) -> dict[str, Any]:
        """Return the doubts of one answer as the report shows them."""
        text, words = split_words(gen.model.tokenizer, ids.tolist())
        measures = [measure(word.first) for word in words]
        claims = {claim.start: claim for claim in self.find_claims(gen, text)}
        pairs = [(_find_claim(word, claims), values) for word, values in zip(words, measures, strict=True)]
        margins, reason = self._ask(gen, request, [(claim, values[0]) for claim, values in pairs if claim is not None])
        entries = [_describe(word, claim, margins, values) for word, (claim, values) in zip(words, pairs, strict=True)]
        return {"request": request, "text": text, "words": entries, "not_asked": reason}

    def _ask(
        self, gen: Generation, request: int, claims: Sequence[tuple[WordClaim, float]]
    ) -> tuple[dict[str, float], str]:
        """Return margins by question, and why some are missing; claims come with the entropy of their words."""
        if not self.ask:
            return {}, "ask is off"
        ordered = sorted(claims, key=lambda pair: -pair[1])
        questions = list(dict.fromkeys(claim.question for claim, _ in ordered))
        reason = "" if len(questions) <= self.most else f"more than {self.most} questions: raise most"
        questions = questions[: self.most]
        margins: list[float] = []
        try:
            for start in range(0, len(questions), AT_ONCE):
                margins += gen.margins(questions[start : start + AT_ONCE], request)
        except GuardError as error:
            return {}, f"{type(error).__name__}: {error}"  # the answer is there, and goes on without margins
        return dict(zip(questions, margins, strict=True)), reason


def _find_claim(word: AnswerWord, claims: Mapping[int, WordClaim]) -> WordClaim | None:
    """Return what a word claims: the claim that begins in it."""
    return next((claims[place] for place in range(word.start, word.end) if place in claims), None)


def _describe(
    word: AnswerWord, claim: WordClaim | None, margins: Mapping[str, float], measures: Sequence[float]
) -> dict[str, Any]:
    """Return a word as the report shows it."""
    entropy, greatest = measures
    margin = None if claim is None else margins.get(claim.question)
    return {
        "text": word.text,
        "start": word.start,
        "end": word.end,
        "first_token": word.first,
        "tokens": word.tokens,
        "level": None if claim is None else claim.level,
        "question": None if claim is None else claim.question,
        "claim": None if claim is None else [claim.subject, claim.value, claim.direction, claim.reference],
        "margin": margin,
        "entropy": entropy,
        "max_probability": greatest,
        "doubt": doubt_entropy(entropy) if margin is None else doubt_margin(margin),
        "by": "entropy" if margin is None else "margin",
    }


def doubt_margin(margin: float) -> float:
    """Return how likely the answer to the question is no, of yes and no: 0.5 where the margin is 0."""
    return 1 / (1 + math.exp(min(max(margin, -FARTHEST), FARTHEST)))


def doubt_entropy(entropy: float) -> float:
    """Return `1 - exp(-entropy)`: 0 where there was no choice, 0.5 at a choice of two."""
    return 1 - math.exp(-max(entropy, 0.0))


def _digest(ids: Tensor) -> bytes:
    return hashlib.blake2b(ids.cpu().numpy().tobytes(), digest_size=16).digest()


def _keep_by_path(gen: Generation, values: Tensor) -> None:
    """Keep what each candidate had before its next token, by what it was so far: the answer may leave the rows before the end."""
    each, numbers = gen.prompt.rows_per_request, values[:, 0].tolist()
    for row, ids in enumerate(gen.generated):
        gen.state[ENTROPIES][row // each, _digest(ids)] = numbers[row]


def _find_measures(gen: Generation, row: int, request: int, ids: Tensor) -> Callable[[int], list[float]]:
    """Return a function from the number of a token to entropy and greatest probability where it was chosen."""
    if gen.prompt.rows_per_request == 1:
        values = gen.rows[ENTROPIES][row].tolist()
        return lambda token: list(values[token])
    return lambda token: list(gen.state[ENTROPIES][request, _digest(ids[:token])])
