"""What a trial is asked to try: each strategy alone at its published values first, then what Optuna's TPE sampler proposes.

The sampler of trial n is seeded by the seed and n, and sees the trials before it and nothing else. So a search that was
stopped proposes what it would have proposed without the stop.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.bench.reporting.level_verdicts import CAPTIONS
from lvlm_guard.extras import import_extra
from lvlm_guard.tuning.candidates import Entries, SearchSpace
from lvlm_guard.tuning.records import TrialRecord

STARTUP = 8
"""Random trials after the published values."""

PRICE = "answer"
"""The entry of a cost that the budget is about."""


@dataclass(frozen=True)
class Proposal:
    """What a trial tries.

    Args:
        choices: What the sampler chose, by its own names.
        entries: The stack.
    """

    choices: Mapping[str, Any]
    entries: Entries


@dataclass(frozen=True)
class Sampler:
    """Proposes stacks.

    Args:
        space: All of them.
        seed: Of the search.
    """

    space: SearchSpace
    seed: int

    def propose(self, records: Sequence[TrialRecord]) -> Proposal:
        """Return what to try after some trials.

        Raises:
            InputError: Optuna is not installed.
        """
        optuna = load_optuna()
        number = len(records)
        defaults = self.space.list_defaults()
        if number < len(defaults):
            return self._replay(optuna, defaults[number])[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=len(defaults) + STARTUP, multivariate=True, group=True, seed=_seed(self.seed, number)
            )
            study = optuna.create_study(directions=_directions(records), sampler=sampler)
            study.add_trials([self._recall(optuna, record, len(study.directions)) for record in records])
            trial = study.ask()
            entries = self.space.propose(trial)
        return Proposal(dict(trial.params), entries)

    def _replay(self, optuna: Any, choices: Mapping[str, Any]) -> tuple[Proposal, Any]:
        """Return the stack of fixed choices, and the trial that made them."""
        trial = optuna.trial.FixedTrial(dict(choices))
        entries = self.space.propose(trial)
        return Proposal({name: choices[name] for name in trial.params}, entries), trial

    def _recall(self, optuna: Any, record: TrialRecord, objectives: int) -> Any:
        """Return a trial as Optuna keeps it; one that cannot be chosen counts as pruned."""
        _, trial = self._replay(optuna, record.choices)
        values = list_values(record)
        usable = record.is_finished and len(values) == objectives and all(map(math.isfinite, values))
        state = optuna.trial.TrialState.COMPLETE if usable else optuna.trial.TrialState.PRUNED
        return optuna.trial.create_trial(
            state=state, values=values if usable else None, params=trial.params, distributions=trial.distributions
        )


def list_values(record: TrialRecord) -> list[float]:
    """Return what a trial came to: accuracy, inventions where there are captions, and cost."""
    accuracy = [value for name, value in record.scores.items() if name not in (CAPTIONS, "recall")]
    mean = [sum(accuracy) / len(accuracy)] if accuracy else []
    inventions = [record.scores[CAPTIONS]] if CAPTIONS in record.scores else []
    return [*mean, *inventions, record.cost[PRICE]] if record.scores else []


def _directions(records: Sequence[TrialRecord]) -> list[str]:
    scores = next((record.scores for record in records if record.is_finished), {"accuracy": 0.0})
    accuracy = ["maximize"] if set(scores) - {CAPTIONS, "recall"} else []
    return [*accuracy, *(["minimize"] if CAPTIONS in scores else []), "minimize"]


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=4).digest(), "big")


def load_optuna() -> Any:
    """Return Optuna, which says warnings and errors alone.

    Raises:
        InputError: It cannot be imported; names the extra.
    """
    optuna = import_extra("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
