"""Control: a constant push towards one of the two answers of a yes/no question."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field

from lvlm_guard import Bias, Generation, StrategyRefused, Term, hookimpl
from lvlm_guard.fields import Text

Words: TypeAlias = Annotated[
    tuple[Text, ...], Field(min_length=1, max_length=100, description="ways to begin this answer")
]
YES: tuple[str, ...] = ("Yes", "yes", " Yes", " yes")
NO: tuple[str, ...] = ("No", "no", " No", " no")


@dataclass(frozen=True)
class YesBias:
    """Add `strength` to the tokens that begin "yes" and take it from those that begin "no", at the first token only.

    Yin H. et al., arXiv 2504.10020: contrastive decoding moves yes/no answers one way, whatever the image shows; this
    does it without image and branch. Negative strengths lean to "no". Each answer is recognised by the first tokens
    of its words; a token that begins both is left alone. `strength = 0` is neutral.
    """

    name: ClassVar[str] = "yes_bias"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "arXiv 2504.10020"
    cost: ClassVar[str] = "none"
    neutral: ClassVar[dict[str, float]] = {"strength": 0.0}

    strength: Annotated[
        float, Field(ge=-1000, le=1000, allow_inf_nan=False, description="logits added to yes, taken from no")
    ] = 1.0
    yes: Words = YES
    no: Words = NO

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Find the tokens."""
        gen.state[self.name] = first_tokens(self.name, gen, self.yes, self.no)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Push, where the first token is predicted."""
        if gen.step == 0:
            yes, no = gen.state[self.name]
            push = torch.zeros_like(gen.logits()[:1], dtype=torch.float32)
            push[:, 0, yes] = self.strength
            push[:, 0, no] = -self.strength
            yield Bias(push)


def first_tokens(name: str, gen: Generation, *answers: Sequence[str]) -> tuple[list[int], ...]:
    """Return the ids that begin the words of each answer and of no other answer; the unknown token begins none.

    Raises:
        StrategyRefused: An answer has no such id.
    """
    distinct = distinct_tokens(gen, *answers)
    if not all(distinct):
        raise StrategyRefused(
            f"{name!r} needs answers that differ in their first tokens: give other words than {answers}."
        )
    return tuple(sorted(ids) for ids in distinct)


def distinct_tokens(gen: Generation, *answers: Sequence[str]) -> list[set[int]]:
    """Return the ids that begin the words of each answer and of no other answer; the unknown token begins none."""
    beginnings = [{gen.tokenize(word)[0] for word in words if gen.tokenize(word)} for words in answers]
    unknown = {getattr(gen.model.tokenizer, "unk_token_id", None)}
    return [ids.difference(unknown, *(rivals for rivals in beginnings if rivals is not ids)) for ids in beginnings]
