"""How an answer is read as yes or no: the official scripts, two harnesses, and ours.

A parser maps the raw answer to True (yes), False (no) or None (neither). The same answers give very different scores under
different parsers, so every result carries the name of its parser, and raw answers are kept to be read again.

Sources: `evaluate.py` of RUCAIBox/POPE, `inference.py` of junyangwang0410/AMBER, the evaluation tool of MME,
`RLC-bench/neok_code/utils.py` of JackChen-seu/Reefknot, the tasks `pope` and `mme` of EvolvingLMMs-Lab/lmms-eval,
`vlmeval/dataset/utils/yorn.py` of open-compass/VLMEvalKit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from lvlm_guard.errors import InputError, nearest

Parser = Callable[[str], bool | None]

_WORD = re.compile(r"[a-z]+")
_YES_NO = {"yes": True, "no": False}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_DOT = re.compile(r"\.(?!\d)")
_DOTS_DROPPED = 32
"""VLMEvalKit hands a flag over as the number of replacements, and the flag's value is 32."""
_MME_PREFIX = 4
_REMEMBERED = 2**14


def ours(text: str) -> bool | None:
    """Read the first word where it is yes or no, else the only one of the two that occurs as a word, in any case."""
    words = _WORD.findall(text.lower())
    if words and words[0] in _YES_NO:
        return _YES_NO[words[0]]
    return _read_single(set(words))


def official_pope(text: str) -> bool | None:
    """Read no where the text before the first dot has `No`, `not` or `no` between blanks, commas dropped; else yes.

    Never None.
    """
    words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def official_amber(text: str) -> bool | None:
    """Read exactly `Yes` or exactly `No`; anything else, including `yes` and `No.`, is neither."""
    return {"Yes": True, "No": False}.get(text)


def official_mme(text: str) -> bool | None:
    """Read yes or no within the first four characters in lower case, yes before no."""
    return _starts(text.lower())


def official_reefknot(text: str) -> bool | None:
    """Read yes where `yes` occurs anywhere, also inside a word; else no. Never None."""
    return "yes" in text.strip().lower()


def official_reefknot_second(text: str) -> bool | None:
    """Read the second answer of a pair: no where `no` occurs anywhere, as in `not` and `know`; else yes. Never None."""
    return "no" not in text.strip().lower()


def lmms_eval(text: str) -> bool | None:
    """Read the whole answer as yes or no in any case, surrounding blanks dropped: `Yes.` is neither."""
    return _YES_NO.get(text.lower().strip())


def lmms_eval_mme(text: str) -> bool | None:
    """Read a lone y or n, or yes or no within the first four characters, without surrounding blanks and dots."""
    answer = text.lower().strip().replace(".", "")
    return {"y": True, "n": False}.get(answer) if len(answer) == 1 else _starts(answer)


def vlmevalkit(text: str) -> bool | None:
    """Read yes or no as a word without the other, punctuation dropped.

    Without the language model that may judge the rest.

    A mark of punctuation is deleted where it stands beside a blank anywhere in the text, and becomes a blank where it does
    not; stars, colons and quotes stay.
    """
    lowered = text.lower()
    bare = lowered
    numbers = _DIGIT_COMMA.search(lowered) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in lowered or f" {mark}" in lowered
        bare = bare.replace(mark, "" if beside_blank or numbers else " ")
    return _read_single(set(_DOT.sub("", bare, count=_DOTS_DROPPED).split()))


def _read_single(words: set[str]) -> bool | None:
    readings = words & set(_YES_NO)
    return _YES_NO[readings.pop()] if len(readings) == 1 else None


def _starts(answer: str) -> bool | None:
    start = answer[:_MME_PREFIX]
    return True if "yes" in start else False if "no" in start else None


COMMON: Mapping[str, Parser] = {"ours": ours, "lmms_eval": lmms_eval, "vlmevalkit": vlmevalkit}
"""Parsers that fit every yes/no suite; the official one differs by suite."""


def named(suite: str, parsers: Mapping[str, Parser], name: str) -> Parser:
    """Return one of a suite's parsers by name; it caches what it read, since every measure asks about the same answers.

    Raises:
        InputError: The suite has none of that name.
    """
    if name not in parsers:
        raise unknown_parser(suite, parsers, name)
    return lru_cache(maxsize=_REMEMBERED)(parsers[name])


def unknown_parser(suite: str, parsers: Mapping[str, object], name: str) -> InputError:
    """Build the error for a parser that a suite does not have."""
    return InputError(f"{suite} has no parser {name!r}.{nearest(name, parsers)}")
