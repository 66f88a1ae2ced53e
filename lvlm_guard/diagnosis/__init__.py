"""What is wrong with a model, or with an answer: verdicts with the figures behind them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_guard.diagnosis.answer.diagnosing import DiagnosisSettings as DiagnosisSettings
    from lvlm_guard.diagnosis.answer.diagnosing import diagnose_answer as diagnose_answer
    from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis as AnswerDiagnosis
    from lvlm_guard.diagnosis.answer.result import AnswerMaps as AnswerMaps
    from lvlm_guard.diagnosis.answer.result import Cause as Cause
    from lvlm_guard.diagnosis.answer.result import WordDiagnosis as WordDiagnosis
    from lvlm_guard.diagnosis.model.diagnosing import diagnose_model as diagnose_model
    from lvlm_guard.diagnosis.model.items import KnownItem as KnownItem
    from lvlm_guard.diagnosis.model.items import load_known_items as load_known_items
    from lvlm_guard.diagnosis.model.profile import Profile as Profile
    from lvlm_guard.diagnosis.model.profile import measure_profile as measure_profile
    from lvlm_guard.diagnosis.verdict import Culprit as Culprit
    from lvlm_guard.diagnosis.verdict import Diagnosis as Diagnosis
    from lvlm_guard.diagnosis.verdict import ProfileFacts as ProfileFacts

_OWNERS = {
    "answer.diagnosing": ("DiagnosisSettings", "diagnose_answer"),
    "answer.result": ("AnswerDiagnosis", "AnswerMaps", "Cause", "WordDiagnosis"),
    "model.diagnosing": ("diagnose_model",),
    "model.items": ("KnownItem", "load_known_items"),
    "model.profile": ("Profile", "measure_profile"),
    "verdict": ("Culprit", "Diagnosis", "ProfileFacts"),
}
_OWNER = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = sorted(_OWNER)  # noqa: PLE0605 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
