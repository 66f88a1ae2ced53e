"""The contract of searches and revisions is itself tested: each fault turns it red."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from lvlm_guard import ModeRefused, Search, hookimpl
from lvlm_guard.testing import SequenceContract

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def red(contract):
    """Names of the checks that fail."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except (AssertionError, ModeRefused):
                failed.add(name)
    return failed


@dataclass(frozen=True)
class Draws:
    """A search that samples, well or badly."""

    name: ClassVar[str] = "draws"
    neutral: ClassVar[dict[str, bool]] = {"on": False}
    on: bool = True
    fault: str = "none"

    @hookimpl
    def search(self, gen):
        return [Search(self._run, 1)]

    def _run(self, decoder):
        chance = None if self.fault == "global" else torch.Generator().manual_seed(0)
        while decoder.generated.shape[1] < decoder.limit:
            logits = decoder.logits()
            if self.fault == "mixes rows":
                logits = logits + logits.nan_to_num(neginf=0.0).mean(0)
            if self.fault == "allows all":
                logits = decoder._next_logits()
            noise = torch.rand(logits.shape[-1], generator=chance, device="cpu").to(logits.device)
            decoder.append((logits + 4 * noise).argmax(-1))
        if self.fault == "spills":
            next(decoder._module.parameters()).add_(1e-3)
        return decoder.generated


@dataclass(frozen=True)
class NeverNeutral(Draws):
    """States no neutral values, so that the core cannot leave it out, and searches at those of its contract too."""

    neutral: ClassVar[dict[str, bool]] = {}


FAULTS = {
    "none": None,
    "never neutral": "test_neutral_is_plain_and_refuses_nothing",
    "global": "test_the_same_call_gives_the_same_tokens",
    "mixes rows": "test_rows_of_a_batch_do_not_see_each_other",
    "allows all": "test_a_forbidden_token_stays_forbidden",
    "spills": "test_the_model_is_left_as_it_was",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_turns_red_for_what_is_broken(fault):
    class Contract(SequenceContract):
        strategy = (NeverNeutral if fault == "never neutral" else Draws)(fault=fault)
        neutral: ClassVar = {"on": False}
        architectures = ("llava",)

    failed = red(Contract())
    assert FAULTS[fault] in failed if FAULTS[fault] else not failed
