"""Control: answer yes wherever the model hesitates between yes and no."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from lvlm_guard import Bias, Generation, Term, hookimpl
from lvlm_guard.fields import Probability
from lvlm_guard_controls.yes_bias import NO, YES, Words, first_tokens

DEMOTION = 1e4


@dataclass(frozen=True)
class OLM:
    """Say yes if `p(yes) + p(no) > mass` and `|p(yes) - p(no)| < gap`, at the first token only.

    Output layer modification, Yin H. et al., arXiv 2504.10020. The released code reads Llama's ids of Yes and No; here
    the probabilities of every first token of the words add up, and the likeliest first token of yes is chosen. All other tokens are
    demoted as by `Plausible`: they keep their order and are chosen only where a later processor forbids yes. In a stack, a
    plausibility cut that excludes yes still holds. `gap = 0` is neutral.
    """

    name: ClassVar[str] = "olm"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "arXiv 2504.10020"
    cost: ClassVar[str] = "none"
    neutral: ClassVar[dict[str, float]] = {"gap": 0.0}

    gap: Annotated[Probability, Field(description="say yes where the two are closer than this")] = 0.5
    mass: Annotated[Probability, Field(description="probability that both together must exceed")] = 0.2
    yes: Words = YES
    no: Words = NO

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Find the tokens."""
        gen.state[self.name] = first_tokens(self.name, gen, self.yes, self.no)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Demote all tokens but yes, in the rows that hesitate."""
        if gen.step == 0:
            yes, no = (torch.tensor(ids, device=gen.logits().device) for ids in gen.state[self.name])
            chances = gen.logits()[:, 0].float().softmax(-1)
            for_yes, for_no = chances[:, yes].sum(-1), chances[:, no].sum(-1)
            hesitates = (for_yes + for_no > self.mass) & ((for_yes - for_no).abs() < self.gap)
            demoted = torch.ones_like(chances).scatter_(1, yes[chances[:, yes].argmax(-1)][:, None], 0.0)
            push = torch.zeros_like(gen.logits(), dtype=torch.float32)
            push[:, 0] = demoted * hesitates[:, None] * -DEMOTION
            yield Bias(push)
