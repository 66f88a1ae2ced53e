"""Refusals as values: what is refused and why, the condition, the message, and what each rule looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from lvlm_guard.errors import GuardError
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionEdit

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Refusal:
    """One line of the page about refusals.

    Args:
        case: What is refused, in Markdown.
        because: Why it cannot be guarded exactly.
        remedy: What to do instead.
        error: Class of the error.
    """

    case: str
    because: str
    remedy: str
    error: type[GuardError]


@dataclass(frozen=True)
class RefusalRule(Refusal, Generic[Subject]):
    """A refusal with its condition.

    Args:
        applies: Whether the subject of the phase is refused.
        message: Message of the error.
    """

    applies: Callable[[Subject], bool]
    message: Callable[[Subject], str]


@dataclass(frozen=True)
class PreparedMain:
    """Main as generate prepared it, and the request it was made of."""

    main: PreparedDecode
    request: Request


@dataclass(frozen=True)
class EditedAttention:
    """Attention edits of the plan, main's image placeholders `[batch, length]`, and main."""

    edits: Sequence[AttentionEdit]
    image_mask: Tensor
    main: PreparedDecode


@dataclass(frozen=True)
class RequestedBranch:
    """A branch, and the request it edits."""

    branch: Branch
    request: Request


@dataclass(frozen=True)
class PreparedBranch:
    """A branch as generate prepared it beside main."""

    branch: Branch
    prepared: PreparedDecode
    main: PreparedDecode


def refuse(rules: Iterable[RefusalRule[Subject]], subject: Subject) -> None:
    """Raise the error of the first rule that applies.

    Raises:
        Refused: Or `InputError`, as the rule says.
    """
    for rule in rules:
        if rule.applies(subject):
            raise rule.error(rule.message(subject))
