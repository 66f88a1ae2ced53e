"""Scoring: what was said against what is true, with intervals."""

from __future__ import annotations

from .intervals import Interval as Interval
from .intervals import interval as interval
from .intervals import paired_difference as paired_difference
from .scores import CaptionScores as CaptionScores
from .scores import YesNoScores as YesNoScores
from .scores import auc as auc
from .scores import caption_scores as caption_scores
from .scores import parse_yes_no as parse_yes_no
from .scores import yes_no_scores as yes_no_scores

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
