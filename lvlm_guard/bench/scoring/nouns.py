"""The objects that a caption names, for CHAIR and AMBER: own word splitting and singulars, and two readings of CHAIR's list.

The official CHAIR code splits with NLTK and makes singulars with `pattern`; AMBER's uses NLTK's tagger and WordNet. None of
them is needed here. `official` keeps what those do to the words that matter, artefacts included; `ours` repairs it.

Source of the quirks: `utils/chair.py` of LisaAnne/Hallucination and `pattern/text/en/inflect.py` of clips/pattern 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_MARK = "."
"""Stands between words that are no phrase, such as those on both sides of a full stop or a possessive s."""
_OFFICIAL_SPLIT = re.compile(r"\s+|([,;:!?()\[\]{}<>\"@#$%&*\u201c\u201d\u2018]|--+)")
_OFFICIAL_EDGES = ".'`"
_POSSESSIVE = re.compile(r"['\u2019](?:s|re|ve|ll|d|m)?$")
_OUR_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*['\u2019]?|[,;:.!?()\[\]{}<>/]|--+")

_IRREGULAR = {
    "men": "man",
    "people": "person",
    "children": "child",
    "geese": "goose",
    "oxen": "ox",
    "feet": "foot",
    "teeth": "tooth",
    "leaves": "leaf",
    "loaves": "loaf",
    "kine": "cow",
}
_SAME_IN_PLURAL = ("scissors", "series", "species", "pliers", "shears", "clippers", "headquarters", "news", "debris")
_ENDINGS = (
    (re.compile(r"([ml])ice$"), r"\1ouse"),
    (re.compile(r"(x|ch|ss|sh)es$"), r"\1"),
    (re.compile(r"(o|bus)es$"), r"\1"),
    (re.compile(r"(?<=[aeo]l)ves$"), "f"),
    (re.compile(r"(?<=[nlw]i)ves$"), "fe"),
    (re.compile(r"(?<=ar)ves$"), "f"),
)
_OE_PLURAL = re.compile(r"(?:sh|can|t)oes$")
_Y_PLURAL = re.compile(r"([^aeiouy])ies$")
_IE_WORDS = (
    "tie",
    "pie",
    "cookie",
    "doggie",
    "collie",
    "birdie",
    "hoagie",
    "hoodie",
    "smoothie",
    "movie",
    "selfie",
    "magpie",
)
_LEFT_BY_PATTERN = ("doggies", "collies", "birdies", "hoagies", "cookies")
"""Words in -ie that `pattern` 3.6 recognises, and then returns as they were."""
_NO_PLURAL = re.compile(r"(?:ss|us|is)$")
_SHORTEST = 3


def official_words(caption: str) -> list[str]:
    """Split a caption into words as NLTK would, lower case, marks between: hyphens and slashes stay inside a word."""
    parts = [part for part in _OFFICIAL_SPLIT.split(caption.lower()) if part]
    return [token for part in parts for token in _parted(part)]


def _parted(part: str) -> Iterator[str]:
    word = part.lstrip(_OFFICIAL_EDGES)
    if word != part:
        yield _MARK
    yield from _unpossessed(word.rstrip(_OFFICIAL_EDGES))
    if word != word.rstrip(_OFFICIAL_EDGES):
        yield _MARK


def our_words(caption: str) -> list[str]:
    """Split a caption into words, lower case, marks between: letters and digits, with inner hyphens and apostrophes."""
    return [token for match in _OUR_TOKEN.findall(caption.lower()) for token in _unpossessed(match)]


def _unpossessed(word: str) -> Iterator[str]:
    """Yield the word, and a mark instead of a possessive s or another short ending after an apostrophe."""
    bare = _POSSESSIVE.sub("", word)
    if bare:
        yield bare
    if bare != word:
        yield _MARK


def official_singular(word: str) -> str:
    """Return the singular as `pattern` 3.6 makes it, for plain words and the words of CHAIR's list.

    A last s always goes: `glass` becomes "glas", `bus` "bu", `tennis` "tenni", and `ties` becomes "ty".
    """
    if word in _LEFT_BY_PATTERN or word in _SAME_IN_PLURAL:
        return word
    changed = _changed(word)
    if changed is not None:
        return changed
    return _Y_PLURAL.sub(r"\1y", word) if _Y_PLURAL.search(word) else word.removesuffix("s")


def our_singular(word: str) -> str:
    """Return the singular of a noun by rule; words in -ss, -us and -is, and those without a singular, are unchanged."""
    if word in _SAME_IN_PLURAL or _NO_PLURAL.search(word) or len(word) <= _SHORTEST:
        return _changed(word) or word
    if word.removesuffix("s") in _IE_WORDS or _OE_PLURAL.search(word):
        return word.removesuffix("s")
    changed = _changed(word)
    if changed is not None:
        return changed
    return _Y_PLURAL.sub(r"\1y", word) if _Y_PLURAL.search(word) else word.removesuffix("s")


def _changed(word: str) -> str | None:
    """Apply irregular plurals, also at the end of longer words, and the regular endings that both readings share."""
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    for ending, instead in _ENDINGS:
        if ending.search(word):
            return ending.sub(instead, word)
    return None


_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_ONE_OBJECT = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "laptop computer",
    "stove top oven",
    "home plate",
    "train track",
)
_STANDS_FOR = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
}
_OFFICIAL_PAIRS = {**{pair: pair for pair in _ONE_OBJECT}, **_STANDS_FOR, "wine glas": "wine glass"}
_LONGEST_PHRASE = 3


@dataclass(frozen=True)
class Vocabulary:
    """CHAIR's list of objects: every line a class and its synonyms.

    Args:
        lines: Lines of `synonyms.txt`.
    """

    lines: Sequence[str]
    as_split: Mapping[str, str] = field(init=False, repr=False, compare=False)
    repaired: Mapping[str, str] = field(init=False, repr=False, compare=False)
    phrases: Mapping[tuple[str, ...], str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Split the lines once as the official code does, so that blanks stay, and once cleanly."""
        rows = [line.strip().split(", ") for line in self.lines if line.strip()]
        clean = {name.strip().lower(): row[0].strip() for row in rows for name in row if name.strip()}
        object.__setattr__(self, "as_split", {name: row[0] for row in rows for name in row})
        object.__setattr__(self, "repaired", clean)
        object.__setattr__(self, "phrases", _phrases(clean))

    @property
    def classes(self) -> frozenset[str]:
        """Names of the classes."""
        return frozenset(self.as_split.values())

    def official(self, caption: str) -> list[str]:
        """Return the classes that a caption names, repeats included, as the official code finds them.

        Pairs of words count as one from left to right; where `toilet` and `seat` both occur, no seat counts; entries with a
        leading blank or a capital letter never match.
        """
        words = _joined([official_singular(word) for word in official_words(caption)])
        if "toilet" in words and "seat" in words:
            words = [word for word in words if word != "seat"]
        return [self.as_split[word] for word in words if word in self.as_split]

    def ours(self, caption: str) -> list[str]:
        """Return the classes that a caption names, repeats included; phrases of up to three words come first.

        Colours and verbs that are also objects ("orange", "remote") count, as in the official code.
        """
        words = list(_unhyphenated(our_words(caption), self.phrases))
        singular = tuple(our_singular(word) for word in words)
        classes: list[str] = []
        at = 0
        while at < len(words):
            length, name = self._phrase(singular[at : at + _LONGEST_PHRASE])
            name = name if length else self.repaired.get(_entry(words[at], self.repaired), "")
            classes += [name] if name else []
            at += length or 1
        return classes

    def _phrase(self, words: tuple[str, ...]) -> tuple[int, str]:
        """Return the number of words of the phrase at the start, 0 without one, and its class, empty where it has none."""
        for length in range(len(words), 1, -1):
            if words[:length] in self.phrases:
                return length, self.phrases[words[:length]]
        return 0, ""


def _phrases(classes: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Return entries of several words, and pairs that stand for another object or for none, in the singular."""
    phrases = {name: meaning for name, meaning in classes.items() if " " in name}
    pairs = {
        **dict.fromkeys(_ONE_OBJECT, ""),
        **{pair: classes.get(meaning, "") for pair, meaning in _STANDS_FOR.items()},
    }
    return {
        tuple(our_singular(word) for word in name.split()): meaning for name, meaning in {**pairs, **phrases}.items()
    }


def _joined(words: Sequence[str]) -> list[str]:
    """Join the official pairs of words, greedily from the left."""
    joined: list[str] = []
    at = 0
    while at < len(words):
        pair = " ".join(words[at : at + 2])
        is_pair = pair in _OFFICIAL_PAIRS and at + 1 < len(words)
        joined.append(_OFFICIAL_PAIRS[pair] if is_pair else words[at])
        at += 2 if is_pair else 1
    return joined


def _unhyphenated(words: Iterable[str], phrases: Collection[tuple[str, ...]]) -> Iterator[str]:
    """Yield words; a hyphen that joins a known phrase ("teddy-bear") becomes a blank."""
    for word in words:
        parts = word.split("-")
        yield from parts if tuple(our_singular(part) for part in parts) in phrases else [word]


_NOT_ALWAYS_A_NOUN = frozenset({
    "can", "hot", "leave", "watch", "support", "drink", "lock", "switch", "sound", "core", "spray", "light", "sailing",
    "orange", "file", "note", "cream", "tie", "bat", "bar", "plane", "stage", "signal", "line", "sink", "board", "shell",
    "range", "pack", "warp", "scoop", "plug", "bill", "rack",
})  # fmt: skip
_BEFORE_A_NOUN = frozenset({
    "a", "an", "the", "this", "that", "these", "those", "some", "any", "each", "every", "his", "her", "its", "their", "one",
    "two", "three", "four", "five", "six", "several", "many", "few", "another", "red", "blue", "green", "white", "black",
    "yellow", "brown", "gray", "grey", "pink", "small", "large", "big", "little", "old", "new", "long", "bright", "wooden",
    "metal", "plastic", "glass", "with", "of", "traffic", "street", "car", "kitchen", "trash", "tin",
})  # fmt: skip


def amber_nouns(response: str, vocabulary: Collection[str]) -> list[str]:
    """Return the words of AMBER's vocabulary that a response uses as nouns, repeats included, in the singular.

    In place of a tagger: a word that is often a verb, an adjective or an auxiliary ("can", "light") counts only after a word
    that a noun follows (an article, a number, a colour, "with"), or at the end of a phrase that such a word begins.
    """
    words = our_words(response)
    nouns = [_entry(word, vocabulary) for word in words]
    return [noun for at, noun in enumerate(nouns) if noun and _is_noun(at, noun, words)]


def _entry(word: str, vocabulary: Collection[str]) -> str:
    """Return the form under which a vocabulary has a word, or nothing.

    "bus" is no plural where "bus" is known, "taxis" is one.
    """
    forms = (word, our_singular(word), word.removesuffix("s"))
    return next((form for form in forms if form in vocabulary), "")


def _is_noun(at: int, noun: str, words: Sequence[str]) -> bool:
    return noun not in _NOT_ALWAYS_A_NOUN or (at > 0 and words[at - 1] in _BEFORE_A_NOUN)


Reading = Callable[[str], list[str]]
"""Maps a caption to the classes it names."""
