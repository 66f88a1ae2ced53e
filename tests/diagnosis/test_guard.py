"""A guard says what is wrong with its answers and its model."""

import pytest

from lvlm_guard import Guard, InputError, ProcessorNeeded
from lvlm_guard.diagnosis import diagnose_answer, diagnose_model

QUESTION = "Describe this image."


def test_a_guard_diagnoses_its_own_answer_under_its_stack(sound, known):
    settings = {"max_new_tokens": 8, "maps": False}
    figures = {}
    for stack in (None, "vcd"):
        guard = Guard(*sound, stack=stack)
        diagnosis = guard.diagnose(known[0].picture, QUESTION, **settings)
        assert diagnosis.to_dict() == diagnose_answer(guard, known[0].picture, QUESTION, **settings).to_dict()
        figures[stack] = [word.to_dict() for word in diagnosis.words]
    assert figures[None] != figures["vcd"]


def test_a_guard_diagnoses_its_model(sound, known, profile):
    diagnosis = Guard(*sound, stack="vcd").diagnose_model(known[:48], profile=profile)
    assert diagnosis.to_dict() == diagnose_model(*sound, known[:48], profile=profile).to_dict()
    assert diagnosis.culprit.component == "none"


def test_without_a_processor_neither_can_be_had(sound, known):
    guard = Guard(sound[0], stack=None)
    with pytest.raises(ProcessorNeeded, match="diagnose_model needs the processor"):
        guard.diagnose_model(known[:24])
    with pytest.raises(ProcessorNeeded, match="diagnose_answer needs the processor"):
        guard.diagnose(known[0].picture, QUESTION)


def test_settings_that_are_unknown_are_named(sound, known):
    with pytest.raises(InputError, match="no setting 'mops'"):
        Guard(*sound, stack=None).diagnose(known[0].picture, QUESTION, mops=True)
