"""Sentences without what is denied and with what is added, in lists that still read as lists."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lvlm_guard_augmentation.claims import (
    MENTION,
    OPPOSITE,
    SentenceClaim,
    find_relation_parts,
    read_direction,
    split_sentences,
)

BETWEEN = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")
_AN = re.compile(r"(?:[aeio]|u(?!ni|se|su|ti|ro)|hour|honest|heir)", re.IGNORECASE)
_CONSONANT = re.compile(r"(?:one|once|eu)", re.IGNORECASE)


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

    def extend(self, added: Sequence[str], comma: str) -> str:
        """Return the list with further pieces at its end, commas as the text writes them."""
        pieces = [*self.pieces, *added]
        last = self.between[-1] if self.between else " and "
        if len(pieces) == 2:  # noqa: PLR2004 - a list of two has no comma
            return last.join(pieces)
        first = self.between[0] if len(self.between) > 1 else comma
        return first.join(pieces[:-1]) + last + pieces[-1]


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


def replace_value(sentence: str, claim: SentenceClaim, value: str) -> str:
    """Return a sentence with another value, or none, in the phrase of an attribute; articles follow."""
    words = claim.piece.split()
    at = next(index for index, word in enumerate(words) if index and word.lower() == claim.value)
    words[at : at + 1] = [value] if value else []
    words[0] = fit_article(words[0], words[1])
    return re.sub(rf"(?<!\w){re.escape(claim.piece)}(?!\w)", " ".join(words), sentence)


def turn_relation(sentence: str, claim: SentenceClaim) -> str:
    """Return a sentence in which a relation is the opposite one."""
    place = _find_place(sentence, claim)
    words = re.sub(
        r"\b(?:left|right|above|over|below|under|beneath)\b",
        lambda word: OPPOSITE[read_direction(word[0])],
        place[2],
        flags=re.IGNORECASE,
    )
    return sentence[: place.start(2)] + words + sentence[place.end(2) :]


def drop_relation(sentence: str, claim: SentenceClaim) -> str:
    """Return a sentence that names both objects of a relation and no place; empty where the place is what it says."""
    place = _find_place(sentence, claim)
    if place[3] and not re.match(r"\s+(?:that|which)\b", place[2], re.IGNORECASE):
        return ""
    follows = re.match(r"\s*(?:,|and\b)", sentence[place.end() :])
    joint = find_comma(sentence) if follows else " and "
    return sentence[: place.start(2)] + joint + sentence[place.start(5) :]


def _find_place(sentence: str, claim: SentenceClaim) -> re.Match[str]:
    return next(match for match in find_relation_parts(sentence) if match[0] == claim.piece)


def add_phrases(text: str, phrases: Sequence[str]) -> str:
    """Return a text that names further objects: at the end of its longest list, else in a sentence of their own."""
    if not phrases:
        return text
    sentences = split_sentences(text)
    lists = [
        (number, claim_list)
        for number, sentence in enumerate(sentences)
        for claim_list in find_lists(sentence, [match[0] for match in MENTION.finditer(sentence)])
    ]
    if not lists:
        return f"{text.rstrip()} {_write_sentence(text, phrases)}".strip()
    number, longest = max(lists, key=lambda entry: len(entry[1].pieces))
    sentences[number] = sentences[number].replace(longest.text, longest.extend(phrases, find_comma(text)), 1)
    return "".join(sentences)


def _write_sentence(text: str, phrases: Sequence[str]) -> str:
    listed = (
        ClaimList(phrases[0], (phrases[0],), ()).extend(phrases[1:], find_comma(text)) if phrases[1:] else phrases[0]
    )
    beginning = "there is" if text and text == text.lower() else "There is"
    return f"{beginning} {listed}{' .' if text.endswith(' .') else '.'}"


def find_comma(text: str) -> str:
    """Return a comma as the text writes it: with a space in front where its marks have one."""
    return " , " if " ," in text or text.rstrip().endswith(" .") else ", "


def write_phrase(name: str, values: Mapping[str, str]) -> str:
    """Return a phrase for an object with its value, where there is one, and an article."""
    words = f"{values[name]} {name}" if values.get(name) else name
    return f"{fit_article('a', words)} {words}"


def fit_article(article: str, word: str) -> str:
    """Return `a` or `an` by the word behind it, in the same case; other articles stay."""
    if article.lower() not in ("a", "an"):
        return article
    fitting = "an" if _AN.match(word) and not _CONSONANT.match(word) else "a"
    return fitting.capitalize() if article[0].isupper() else fitting
