"""Every error and warning that the library raises on purpose.

GuardError
├── InputError           what the caller passed cannot be used           (also a ValueError)
│   ├── StackError       a stack, or a file that holds one
│   └── ProcessorNeeded  something needs the processor or tokenizer
├── PluginError          what a plugin offers cannot be used
│   └── PluginRejected   a strategy that breaks the hook contract
├── Refused              this combination cannot be guarded exactly      (also a RuntimeError)
│   ├── StrategyRefused  a strategy cannot work on this request
│   ├── ModelRefused     the model lacks what the plan needs
│   ├── ModeRefused      a mode of generate that cannot be guarded
│   ├── FitRefused           what was fitted breaks answers, or adds nothing
│   └── KernelsRefused   kernels requested by name that cannot run here
└── NonFiniteLogits      the model or a branch produced NaN

GuardWarning
├── NoEffectWarning      a strategy, or the image, changed nothing
└── UncompiledWarning    a compiled model ran uncompiled
"""

import reprlib
from collections.abc import Iterable

SCREEN = 1600
"""Characters of the longest error message: 20 lines of 80 columns."""


class GuardError(Exception):
    """Base of every error the library raises on purpose; a message can be written as UTF-8, and one longer than a screen loses its middle."""

    def __init__(self, *args: object) -> None:
        super().__init__(*_shorten_texts(args))


class InputError(GuardError, ValueError):
    """What the caller passed cannot be used; the message says what to pass instead."""


class StackError(InputError):
    """A stack cannot be built; the message starts with the path of the entry at fault."""


class ProcessorNeeded(InputError):
    """A processor or tokenizer is needed: ``Guard(model, processor)``."""


class PluginError(GuardError):
    """What a plugin offers cannot be used."""


class PluginRejected(PluginError):
    """A strategy breaks the hook contract; the message names the hook and the fix."""


class Refused(GuardError, RuntimeError):
    """This combination cannot be guarded exactly, so it is not attempted."""


class StrategyRefused(Refused):
    """A strategy cannot work on this request."""


class ModelRefused(Refused):
    """The model lacks what the plan needs."""


class ModeRefused(Refused):
    """A mode of ``generate`` that cannot be guarded."""


class FitRefused(Refused):
    """What was fitted breaks answers on calibration data, or adds nothing there."""


class KernelsRefused(Refused):
    """``LVLM_GUARD_KERNELS`` requests kernels that cannot run here."""


class NonFiniteLogits(GuardError, ArithmeticError):
    """The model or one of the branches produced NaN logits."""


class GuardWarning(UserWarning):
    """Base of every warning the library issues; its message can be written as UTF-8, and is no longer than a screen."""

    def __init__(self, *args: object) -> None:
        super().__init__(*_shorten_texts(args))


class NoEffectWarning(GuardWarning):
    """A strategy changed no logit of the call, or the image changed none."""


class UncompiledWarning(GuardWarning):
    """A compiled model ran uncompiled because a strategy works inside its layers, or because the whole module was compiled."""


def nearest(name: object, known_names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name as a question, then all known names."""
    names = sorted(known_names)
    word = (name if isinstance(name, str) else quote(name))[:LONGEST_NAME].lower()
    distances = {candidate: _edit_distance(word, candidate.lower()) for candidate in names}
    close = min(names, key=distances.__getitem__, default=None)
    is_close = close is not None and distances[close] <= max(1, len(close) // 2)
    hint = f" Did you mean {close!r}?" if is_close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def quote(value: object, length: int = 80) -> str:
    """Return a value as an error message shows it: its repr, with deep, long and failing ones abridged."""
    try:
        text = _ABRIDGED.repr(value)
    except Exception:  # noqa: BLE001 - a class of the user's may raise anything
        text = f"<{type(value).__name__} that cannot be shown>"
    return shorten(text, length)


def describe_error(error: BaseException) -> str:
    """Return an error as the message of another shows it: its class and text, or its class alone where its text fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a class of the user's may raise anything
        return type(error).__name__


def shorten(text: str, length: int) -> str:
    """Return text of at most `length` characters; the middle of a longer one is left out, with a note of how much.

    Half a character, as paths and damaged text hold them, is escaped: no log or terminal could take the message otherwise.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= length:
        return text
    note = f" ... [{len(text)} characters] ... "
    room = max(length - len(note), 0)
    return text[: room - room // 3] + note + text[len(text) - room // 3 :]


def _shorten_texts(args: Iterable[object]) -> Iterable[object]:
    return (shorten(part, SCREEN) if isinstance(part, str) else part for part in args)


LONGEST_NAME = 60


def _write_integer(number: int, _: int) -> str:
    """Python refuses to write an integer of more than 4300 digits."""
    return repr(number) if number.bit_length() < LONGEST_INTEGER else f"<integer of {number.bit_length()} bits>"


LONGEST_INTEGER = 200
_ABRIDGED = reprlib.Repr()
_ABRIDGED.repr_int = _write_integer  # type: ignore[method-assign,assignment]
_ABRIDGED.maxstring = _ABRIDGED.maxother = 120


def _edit_distance(word: str, name: str) -> float:
    """Letters to insert, remove or replace, Damerau-Levenshtein; two letters that changed places count a little less than one."""
    above: list[float] = []
    row: list[float] = list(range(len(name) + 1))
    for i, letter in enumerate(word, 1):
        above_that, above, row = above, row, [i]
        for j, target in enumerate(name, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == name[j - 2] and word[i - 2] == target and letter != target:
                cost = min(cost, above_that[j - 2] + 0.9)
            row.append(cost)
    return row[-1]
