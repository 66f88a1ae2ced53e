"""Control: say the opposite of what the model would say without the picture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import Bias, Branch, Generation, StrategyRefused, Term, hookimpl
from lvlm_guard.fields import Probability
from lvlm_guard_controls.yes_bias import NO, YES, Words, distinct_tokens

Pairs: TypeAlias = Annotated[
    tuple[tuple[Words, Words], ...],
    Field(min_length=1, max_length=50, description="pairs of opposed answers, each as ways to begin it"),
]
PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (YES, NO),
    (("Left", "left", " Left", " left"), ("Right", "right", " Right", " right")),
    (("Above", "above", " Above", " above"), ("Below", "below", " Below", " below")),
)
DEMOTION = 1e4
NO_IMAGE = Branch.without_image()
NO_TOKEN = -1
"""In the place of a token, where a row is left alone."""


@dataclass(frozen=True)
class Contrarian:
    """Invert the image-free branch: at the first token, say the opposite of its likeliest answer, where that is one of a pair.

    A test whose truths all go against habit is won by this, without a look at the picture; a gain on such a test says nothing
    that this control does not say. It acts in rows where the image-free branch gives the answers of all pairs together more than `mass`,
    and where the likeliest of them is likelier than its opposite. Of the opposite's first tokens the branch's likeliest is
    said; all others are demoted as by `Plausible`. Rows without an image are left alone. A pair that the tokenizer cannot tell apart by first tokens is left out.
    `mass = 1` is neutral.
    """

    name: ClassVar[str] = "contrarian"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "one image-free prefill"
    neutral: ClassVar[dict[str, float]] = {"mass": 1.0}

    mass: Annotated[Probability, Field(description="probability that all answers together must exceed")] = 0.2
    pairs: Pairs = PAIRS

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Find the tokens of each answer, opposites side by side, and ask the image-free branch, which nothing later needs."""
        answers = distinct_tokens(gen, *(words for pair in self.pairs for words in pair))
        usable_pairs = [pair for pair in zip(answers[::2], answers[1::2], strict=True) if all(pair)]
        if not usable_pairs:
            raise StrategyRefused(
                f"'contrarian' needs a pair of answers that differ in their first tokens: give other pairs than these. {self.pairs}"
            )
        tokens = [sorted(ids) for pair in usable_pairs for ids in pair]
        if gen.prompt.has_image:
            opposites, acts = self._choose(gen.prompt_states(NO_IMAGE).logits, tokens)
            gen.rows.put(self.name, torch.where(acts, opposites, NO_TOKEN))

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Demote all tokens but the opposite, in the rows where the branch has an answer."""
        if gen.step == 0 and self.name in gen.rows:
            logits = gen.logits()
            opposites = gen.rows[self.name].to(logits.device)
            demoted = torch.ones_like(logits[:, 0], dtype=torch.float32)
            demoted.scatter_(1, opposites.clamp(min=0)[:, None], 0.0)
            push = torch.zeros_like(logits, dtype=torch.float32)
            push[:, 0] = demoted * (opposites != NO_TOKEN)[:, None] * -DEMOTION
            yield Bias(push)

    def _choose(self, blind: Tensor, answers: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the token to say `[rows]` and whether to say it, bool `[rows]`, from logits `[rows, vocab]`."""
        tokens = [torch.tensor(ids, device=blind.device) for ids in answers]
        chances = torch.stack([blind.softmax(-1)[:, ids].sum(-1) for ids in tokens], 1)
        opposite = chances.argmax(1, keepdim=True) ^ 1
        likeliest = torch.stack([ids[blind[:, ids].argmax(-1)] for ids in tokens], 1)
        acts = (chances.sum(1) > self.mass) & (chances.amax(1) > chances.gather(1, opposite)[:, 0])
        return likeliest.gather(1, opposite)[:, 0], acts
