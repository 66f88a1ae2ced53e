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
│   └── KernelsRefused   kernels requested by name that cannot run here
└── NonFiniteLogits      the model or a branch produced NaN

GuardWarning
├── NoEffectWarning      a strategy, or the image, changed nothing
└── UncompiledWarning    a compiled model ran uncompiled
"""

import difflib
from collections.abc import Iterable


class GuardError(Exception):
    """Base of every error the library raises on purpose."""


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


class KernelsRefused(Refused):
    """``LVLM_GUARD_KERNELS`` requests kernels that cannot run here."""


class NonFiniteLogits(GuardError, ArithmeticError):
    """The model or one of the branches produced NaN logits."""


class GuardWarning(UserWarning):
    """Base of every warning the library issues."""


class NoEffectWarning(GuardWarning):
    """A strategy changed no logit of the call, or the image changed none."""


class UncompiledWarning(GuardWarning):
    """A compiled model ran uncompiled because a strategy works inside its layers, or because the whole module was compiled."""


def nearest(name: str, known_names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name as a question, then all known names."""
    names = sorted(known_names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."
