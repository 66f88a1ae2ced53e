"""A server with stacks that misbehave on cue: `python served_stacks.py`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lvlm_guard import Bias, Generation, Guard, PictureSources, Stack, StrategyRefused, Term, hookimpl, loading
from lvlm_guard.serving.running import ListeningPlace, run_server
from lvlm_guard.serving.settings import ServingLimits

RAISES, REFUSES = "detector", "harbour"
"""Words of a question at which the stack `moody` fails: in the middle of the answer, and before it."""
SECONDS = 0.05
A_LITTLE = {7: 0.25}


@dataclass(frozen=True)
class Moody:
    """Prefers one token a little, and fails at certain words."""

    name: ClassVar[str] = "moody"

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse one word."""
        if holds(gen, REFUSES):
            raise StrategyRefused("moody: there is no harbour here. Ask about something else.")

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Fail at another word, after some tokens."""
        if gen.step > 3 and holds(gen, RAISES):
            raise RuntimeError("a secret of the strategy")
        yield bias(gen, A_LITTLE)


@dataclass(frozen=True)
class Slow:
    """Takes its time for every token, and never ends by itself, so an answer of n tokens takes at least n times `SECONDS`."""

    name: ClassVar[str] = "slow"
    end: int

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Sleep, and keep the end away."""
        time.sleep(SECONDS)
        yield bias(gen, A_LITTLE | {self.end: -1e4})


def holds(gen: Generation, word: str) -> bool:
    """Whether a word stands in any prompt of the batch."""
    (token,) = gen.tokenize(word)
    return bool((gen.prompt.ids == token).any())


def bias(gen: Generation, preferences: Mapping[int, float]) -> Bias:
    """Return preferences for tokens."""
    logits = gen.logits()
    values = logits.new_zeros(logits.shape[-1])
    for token, preference in preferences.items():
        values[token] = preference
    return Bias(values)


def main() -> None:
    """Serve the bundled model until told to stop."""
    model, processor = loading.load("testbed", "cpu")
    processor.image_processor.do_resize = False  # the model raises at pictures of other sizes
    guard = Guard(model, processor, None, without_image="plain", pictures=PictureSources(local=False))
    stacks: dict[str, Any] = {
        "vcd": Stack.of("vcd"),
        "both": Stack.of("vcd+pai"),
        "moody": Stack.of([Moody()]),
        "slow": Stack.of([Slow(model.generation_config.eos_token_id)]),
        "searching": Stack.of("opera"),
        "plain": Stack.of(None),
    }
    limits = ServingLimits(
        max_batch=6, queue=12, max_tokens=400, max_pixels=10**6, max_body=2 * 2**20, head_seconds=3, body_seconds=2,
        answer_seconds=100, gather_seconds=0.1,
    )  # fmt: skip
    run_server(guard, "testbed", stacks, ListeningPlace(port=0), limits)


if __name__ == "__main__":
    main()
