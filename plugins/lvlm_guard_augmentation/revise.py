"""Ask the model about every object that it named, and remove those that it denies."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import Generation, InputError, ProcessorNeeded, Revision, check_returned, hookimpl
from lvlm_guard.fields import Template, Timeout, UserFunction

SENTENCE = re.compile(r"[^.!?]*[.!?]*\s*")
PHRASE = re.compile(
    r"\b(?:an?|one|another)((?:\s+[\w-]+){1,4}?)(?=\s*(?:[,.;:!?]|$)|\s+(?:and|or|with|on|in|at|of|to|by|near|next|that|which|is|are|has)\b)",
    re.IGNORECASE,
)
BETWEEN = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")
Claim = tuple[str, str]
Words = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True)
class Revise:
    """Split the answer into claims, ask the guarded model yes or no about each, drop those it answers no.

    The training-free loop of Woodpecker (arXiv 2310.16045) and Volcano (arXiv 2311.07362), with the model itself in
    place of outside detectors and trained critics. By default a claim is a phrase with a singular article, and its
    last word is the object asked for. A splitter is called with a sentence and returns pairs: a piece of it, and the
    question about that piece. Pieces in a list go alone; a sentence whose piece cannot go alone goes with it. Rounds
    end early once nothing is denied. `rounds = 0` is neutral.
    """

    name: ClassVar[str] = "revise"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "arXiv 2310.16045, 2311.07362"
    cost: ClassVar[str] = "one short answer for each claim"
    neutral: ClassVar[dict[str, int]] = {"rounds": 0}

    rounds: Annotated[int, Field(ge=0, le=100, description="how often the answer is checked; 0 is off")] = 1
    question: Annotated[Template, Field(description="question about an object")] = "Is there a {} in the image?"
    splitter: Annotated[
        UserFunction,
        Field(description='function from a sentence to (piece, question) pairs, or "package.module:function"'),
    ] = None
    timeout: Timeout = 60.0

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Return revised answers of the rows in which a claim was denied."""
        if gen.model.tokenizer is None:
            raise ProcessorNeeded("'revise' needs a tokenizer: give the guard the processor, Guard(model, processor).")
        for row, ids in enumerate(gen.output_ids):
            answer = text = str(gen.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            for _ in range(self.rounds):
                before, text = text, self._check(gen, row, text)
                if text == before:
                    break
            if text != answer:
                yield Revision(row, text)

    def _check(self, gen: Generation, row: int, text: str) -> str:
        """Return a text without the claims that the model denies."""
        sentences = [sentence for sentence in SENTENCE.findall(text) if sentence.strip()]
        claims = [self._claims(gen, sentence) for sentence in sentences]
        questions = list(dict.fromkeys(question for pairs in claims for _, question in pairs))
        answers = dict(zip(questions, gen.ask(questions, row), strict=True))
        denied = {question for question, answer in answers.items() if re.match(r"\W*no\b", answer, re.IGNORECASE)}
        revised = [
            remove_pieces(
                sentence, [piece for piece, _ in pairs], [piece for piece, question in pairs if question in denied]
            )
            for sentence, pairs in zip(sentences, claims, strict=True)
        ]
        return "".join(revised).strip()

    def _claims(self, gen: Generation, sentence: str) -> Sequence[Claim]:
        """Return the (piece, question) pairs of a sentence."""
        if self.splitter is None:
            return [
                (phrase[0], self.question.replace("{}", phrase[1].split()[-1])) for phrase in PHRASE.finditer(sentence)
            ]
        claims = gen.call_user_function(self.splitter, sentence, what="splitter", timeout=self.timeout)
        needs = "'revise' needs pairs of a piece and a question: correct the splitter"
        pairs: Sequence[Claim] = check_returned(claims, tuple[tuple[Words, Words], ...], needs)
        if any(piece not in sentence for piece, _ in pairs):
            raise InputError(f"'revise' needs pieces of {sentence!r}: correct the splitter, which returned {pairs!r}.")
        return pairs


def remove_pieces(sentence: str, pieces: Sequence[str], denied: Sequence[str]) -> str:
    """Return a sentence without denied pieces; empty where one is in no list, or in a list of which nothing remains."""
    tail, rebuilt = sentence, ""
    for run in find_lists(sentence, pieces):
        start = tail.index(run.text)
        remaining = [piece for piece in run.pieces if piece not in denied]
        if not remaining:
            return ""
        rebuilt += tail[:start] + run.join(remaining)
        tail = tail[start + len(run.text) :]
    return rebuilt + tail


@dataclass(frozen=True)
class ClaimList:
    """A list in a sentence: its text, its pieces, and the separators between them."""

    text: str
    pieces: tuple[str, ...]
    between: tuple[str, ...]

    def join(self, remaining: Sequence[str]) -> str:
        """Return the list of the remaining pieces, with the separators of the whole list."""
        if len(remaining) == len(self.pieces) or len(remaining) == 1:
            return self.text if len(remaining) == len(self.pieces) else remaining[0]
        return self.between[0].join(remaining[:-1]) + self.between[-1] + remaining[-1]


def find_lists(sentence: str, pieces: Sequence[str]) -> Iterable[ClaimList]:
    """Find the lists of a sentence, in its order."""
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        start = sentence.find(piece, at)
        if start >= 0:
            at = start + len(piece)
            spans.append((start, at))
    while spans:
        run = [spans.pop(0)]
        while spans and BETWEEN.fullmatch(sentence[run[-1][1] : spans[0][0]]):
            run.append(spans.pop(0))
        between = [sentence[left[1] : right[0]] for left, right in pairwise(run)]
        yield ClaimList(sentence[run[0][0] : run[-1][1]], tuple(sentence[a:b] for a, b in run), tuple(between))
