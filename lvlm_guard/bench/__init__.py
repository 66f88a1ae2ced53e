"""Score answers against the truth, with intervals."""

from __future__ import annotations

from lvlm_guard.bench.scoring.intervals import Interval as Interval
from lvlm_guard.bench.scoring.intervals import interval as interval
from lvlm_guard.bench.scoring.intervals import paired_difference as paired_difference
from lvlm_guard.bench.scoring.scores import CaptionScores as CaptionScores
from lvlm_guard.bench.scoring.scores import YesNoScores as YesNoScores
from lvlm_guard.bench.scoring.scores import auc as auc
from lvlm_guard.bench.scoring.scores import caption_scores as caption_scores
from lvlm_guard.bench.scoring.scores import parse_yes_no as parse_yes_no
from lvlm_guard.bench.scoring.scores import yes_no_scores as yes_no_scores

__all__ = [
    "CaptionScores",
    "Interval",
    "YesNoScores",
    "auc",
    "caption_scores",
    "interval",
    "paired_difference",
    "parse_yes_no",
    "yes_no_scores",
]
