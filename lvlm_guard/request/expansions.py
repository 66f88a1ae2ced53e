"""What a processor writes into a prompt for an image, in words too: learnt from what it makes of blank pictures."""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.request.fences import Fences
from lvlm_guard.request.requests import OPTIONS_OF_PICTURES

SIZES = ((64, 64), (768, 256), (256, 768))
"""Sizes of the blank pictures: square, and wide and tall enough to be cut into crops."""
BEFORE, BEHIND = "a", "b"
"""The user's text round a blank picture."""
SPACE = "\u2581"
"""What some tokenizers write for a space, also before the first word of a text."""
TOKENIZING = threading.Lock()
"""Held while a tokenizer works for us in a way of its own; tokenizers are not made to be shared by threads."""


@dataclass(frozen=True)
class Expansion:
    """What is written for one image, as the tokens of a vocabulary joined into texts, without its placeholders.

    Args:
        before: What stands before the first placeholders.
        gaps: What stands between one run of placeholders and the next.
        after: What stands behind the last placeholders.
        repeats: Whether the last of the gaps stands as often as there are parts.
        worded: Those of `before` and `gaps` that hold words.
    """

    before: str
    gaps: tuple[str, ...]
    after: str
    repeats: bool = False
    worded: tuple[str, ...] = ()

    def count_runs(self, texts: Sequence[str]) -> int:
        """Return how many runs of placeholders are one image, by the texts before, between and behind them; 0 if they are none."""
        before, *following = texts
        required = self.gaps[:-1] if self.repeats else self.gaps
        if not before.endswith(self.before) or tuple(following[: len(required)]) != required:
            return 0
        runs = len(required)
        while self.repeats and runs < len(following) and following[runs] == self.gaps[-1]:
            runs += 1
        return runs + 1 if runs < len(following) and following[runs].startswith(self.after) else 0

    def stands_in(self, text: str) -> bool:
        """Whether words that are written for an image stand before placeholders."""
        return any(text.endswith(part) if part == self.before else text == part for part in self.worded)


@dataclass(frozen=True)
class Cut:
    """Where what was written for an image meets the user's text.

    Args:
        place: Index between tokens; a token of both lies on the user's side.
        shared: The user's part of that token; empty where no token holds some of both.
    """

    place: int
    shared: str = ""


_LEARNT: dict[tuple[int, int], tuple[weakref.ref[Any], tuple[Expansion, ...]]] = {}


def learn_expansions(processor: Any, placeholder: int | None, fences: Fences) -> tuple[Expansion, ...]:
    """Return what a processor writes for images in words, the longest first; nothing where it cannot be tried.

    It is tried once, with blank pictures of several shapes and with each switch of its own for pictures on and off.

    Args:
        processor: The processor.
        placeholder: Id that stands for parts of an image.
        fences: What stands round images without being words.
    """
    if placeholder is None or not hasattr(processor, "image_processor") or not callable(processor):
        return ()
    key = id(processor), placeholder
    with TOKENIZING:
        entry = _LEARNT.get(key)
        if entry is None or entry[0]() is not processor:
            reference = weakref.ref(processor, lambda _: _LEARNT.pop(key, None))
            entry = _LEARNT[key] = reference, _learn(processor, placeholder, fences)
    return entry[1]


def cut_before(tokens: Sequence[str], stop: int, text: str, first: int) -> Cut | None:
    """Return where a text begins that ends at token `stop`; None where something else stands there, or it begins before `first`."""
    start, read = stop, ""
    while len(read) < len(text) and start > first:
        start -= 1
        read = tokens[start] + read
    shared = read[: len(read) - len(text)]
    return Cut(start + bool(shared), shared) if read.endswith(text) else None


def cut_behind(tokens: Sequence[str], start: int, text: str, last: int) -> Cut | None:
    """Return where a text ends that begins at token `start`; None where something else stands there, or it ends behind `last`."""
    stop, read = start, ""
    while len(read) < len(text) and stop < last:
        read += tokens[stop]
        stop += 1
    shared = read[len(text) :]
    return Cut(stop - bool(shared), shared) if read.startswith(text) else None


def _learn(processor: Any, placeholder: int, fences: Fences) -> tuple[Expansion, ...]:
    """Return the distinct expansions of blank pictures that hold words."""
    word = next((word for word in _list_words(processor, fences) if _probe(processor, word, placeholder)), None)
    if word is None:
        return ()
    expansions = {
        expansion
        for options in ({}, *_list_switches(processor.image_processor))
        for size in SIZES
        if (ids := _probe(processor, word, placeholder, size, options)) is not None
        and (expansion := _read_expansion(ids, placeholder, fences)) is not None
    }
    return tuple(sorted(expansions, key=lambda each: (-len(each.gaps), each.before, each.gaps, each.after)))


def _list_words(processor: Any, fences: Fences) -> Iterator[str]:
    """Yield words that may stand for an image in a text which the processor is given."""
    word = getattr(processor, "image_token", None)
    if isinstance(word, str) and word:
        yield word
    yield from (fences.join([token]) for token in sorted(fences.opening))


def _list_switches(pictures: Any) -> Iterator[dict[str, bool]]:
    """Yield each switch of a processor of pictures that not every such processor has, on and off."""
    kinds: dict[str, Any] = dict(getattr(getattr(pictures, "valid_kwargs", None), "__annotations__", {}))
    if (preprocess := getattr(pictures, "preprocess", None)) is not None:
        kinds |= {name: each.annotation for name, each in inspect.signature(preprocess).parameters.items()}
    names = [name for name, kind in kinds.items() if "bool" in str(kind) and name not in OPTIONS_OF_PICTURES]
    yield from ({name: is_on} for name in names for is_on in (True, False))


def _probe(
    processor: Any,
    word: str,
    placeholder: int,
    size: tuple[int, int] = SIZES[0],
    options: Mapping[str, bool] | None = None,
) -> list[int] | None:
    """Return what a processor makes of a blank picture between two words; None where it refuses, or writes no placeholder."""
    settings = {"images_kwargs": dict(options)} if options else {}
    picture, text = Image.new("RGB", size), f"{BEFORE}{word}{BEHIND}"
    try:
        batch = processor(images=[picture], text=[text], return_tensors="pt", **settings)
        ids = [int(token) for token in batch["input_ids"][0]]
    except Exception:  # noqa: BLE001 - a processor is foreign code, which raises anything
        return None
    return ids if placeholder in ids else None


def _read_expansion(ids: Sequence[int], placeholder: int, fences: Fences) -> Expansion | None:
    """Return what was written for the picture of a probe; None where it holds no words, or a token that begins or ends prompts."""
    places = [index for index, token in enumerate(ids) if token == placeholder]
    between = [ids[left + 1 : right] for left, right in itertools.pairwise(places) if right - left > 1]
    before = _leave_out_words(ids[: places[0]], fences)
    after = _leave_out_words(ids[places[-1] + 1 :], fences, behind=True)
    if before is None or after is None or any(token in fences.ends for part in between for token in part):
        return None
    gaps = [(fences.join(gap), _has_words(gap, fences)) for gap in between]
    worded = tuple(dict.fromkeys(text for text, has_words in (before, *gaps) if has_words))
    if not worded and not after[1]:
        return None
    texts = [text for text, _ in gaps]
    while len(texts) > 1 and texts[-2] == texts[-1]:
        texts.pop()
    return Expansion(before[0], tuple(texts), after[0], len(texts) < len(gaps), worded)


def _leave_out_words(ids: Sequence[int], fences: Fences, *, behind: bool = False) -> tuple[str, bool] | None:
    """Return what a processor wrote before a picture, or behind it, without the words of a probe, and whether it holds words.

    None where it begins or ends a prompt, or the words of the probe cannot be told from it.
    """
    tokens = [token for token in ids if token not in fences.ends]
    inner = ids[: len(tokens)] if behind else ids[len(ids) - len(tokens) :]
    texts, word = [fences.join([token]) for token in tokens], BEHIND if behind else BEFORE
    places = [place for place, token in enumerate(tokens) if token not in fences.marks and word in texts[place]]
    if list(inner) != tokens or not places:
        return None
    if behind:
        place, remainder = places[-1], texts[places[-1]].rpartition(word)[0].removesuffix(SPACE)
        return "".join((*texts[:place], remainder)), _has_words(tokens[:place], fences) or any(
            map(str.isalnum, remainder)
        )
    place, remainder = places[0], texts[places[0]].partition(word)[2]
    return "".join((remainder, *texts[place + 1 :])), _has_words(tokens[place + 1 :], fences) or any(
        map(str.isalnum, remainder)
    )


def _has_words(ids: Sequence[int], fences: Fences) -> bool:
    """Whether tokens hold words beside what is named after images or added to the vocabulary."""
    return any(map(str.isalnum, fences.join([token for token in ids if token not in fences.marks])))
