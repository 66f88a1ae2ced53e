"""Ask the model about every thing it named, and take back what it denies."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import Generation, InputError, ProcessorNeeded, Revision, hookimpl
from lvlm_guard.fields import Template, Timeout, UserFunction

SENTENCE = re.compile(r"[^.!?]*[.!?]*\s*")
PHRASE = re.compile(
    r"\b(?:an?|one|another)((?:\s+[\w-]+){1,4}?)(?=\s*(?:[,.;:!?]|$)|\s+(?:and|or|with|on|in|at|of|to|by|near|next|that|which|is|are|has)\b)",
    re.IGNORECASE,
)
BETWEEN = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")
Claim = tuple[str, str]


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

    rounds: Annotated[int, Field(ge=0, description="how often the answer is checked; 0 is off")] = 1
    question: Annotated[Template, Field(description="question about an object")] = "Is there a {} in the image?"
    splitter: Annotated[
        UserFunction,
        Field(description='function from a sentence to (piece, question) pairs, or "package.module:function"'),
    ] = None
    timeout: Timeout = 60.0

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Revised answers of the rows where something was denied."""
        if gen.model.tokenizer is None:
            raise ProcessorNeeded("'revise' needs a tokenizer: give the guard the processor, Guard(model, processor).")
        for row, ids in enumerate(gen.output_ids):
            said = text = str(gen.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            for _ in range(self.rounds):
                before, text = text, self._checked(gen, row, text)
                if text == before:
                    break
            if text != said:
                yield Revision(row, text)

    def _checked(self, gen: Generation, row: int, text: str) -> str:
        """A text without the claims that the model denies."""
        sentences = [one for one in SENTENCE.findall(text) if one.strip()]
        claims = [self._claims(gen, sentence) for sentence in sentences]
        questions = list(dict.fromkeys(asked for own in claims for _, asked in own))
        answers = dict(zip(questions, gen.ask(questions, row), strict=True))
        denied = {asked for asked, answer in answers.items() if re.match(r"\W*no\b", answer, re.IGNORECASE)}
        kept = [
            without(sentence, [piece for piece, _ in own], [piece for piece, asked in own if asked in denied])
            for sentence, own in zip(sentences, claims, strict=True)
        ]
        return "".join(kept).strip()

    def _claims(self, gen: Generation, sentence: str) -> Sequence[Claim]:
        """(piece, question) pairs of one sentence."""
        if self.splitter is None:
            return [(one[0], self.question.format(one[1].split()[-1])) for one in PHRASE.finditer(sentence)]
        found = gen.call_user_function(self.splitter, sentence, what="splitter", timeout=self.timeout)
        pairs = [(str(piece), str(asked)) for piece, asked in found]
        if any(piece not in sentence for piece, _ in pairs):
            raise InputError(f"'revise' needs pieces of {sentence!r}: correct the splitter, which returned {found!r}.")
        return pairs


def without(sentence: str, pieces: Sequence[str], denied: Sequence[str]) -> str:
    """A sentence without denied pieces; empty where one of them does not stand in a list with others that stay."""
    rest, rebuilt = sentence, ""
    for run in runs(sentence, pieces):
        start = rest.index(run.text)
        kept = [piece for piece in run.pieces if piece not in denied]
        if not kept:
            return ""
        rebuilt += rest[:start] + run.joined(kept)
        rest = rest[start + len(run.text) :]
    return rebuilt + rest


@dataclass(frozen=True)
class Run:
    """Pieces that follow each other as a list, and what stands between them."""

    text: str
    pieces: tuple[str, ...]
    between: tuple[str, ...]

    def joined(self, kept: Sequence[str]) -> str:
        """The list of those that stay, with the list's own separators."""
        if len(kept) == len(self.pieces) or len(kept) == 1:
            return self.text if len(kept) == len(self.pieces) else kept[0]
        return self.between[0].join(kept[:-1]) + self.between[-1] + kept[-1]


def runs(sentence: str, pieces: Sequence[str]) -> Iterable[Run]:
    """The lists of a sentence, in its order."""
    found: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        start = sentence.find(piece, at)
        if start >= 0:
            at = start + len(piece)
            found.append((start, at))
    while found:
        run = [found.pop(0)]
        while found and BETWEEN.fullmatch(sentence[run[-1][1] : found[0][0]]):
            run.append(found.pop(0))
        between = [sentence[one[1] : other[0]] for one, other in pairwise(run)]
        yield Run(sentence[run[0][0] : run[-1][1]], tuple(sentence[a:b] for a, b in run), tuple(between))
