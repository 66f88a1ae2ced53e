"""Which edits changed anything is found out without comparing for ever, and without a wait at every token."""

import torch

from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.testing.devices import FIRST, pretended


class Uncomparable(torch.Tensor):
    def __ne__(self, other):
        raise AssertionError("compared once more")


def uncomparable():
    return torch.ones(3).as_subclass(Uncomparable)


def test_an_edit_that_changed_something_is_compared_no_more():
    tracker, edit, still = EffectTracker(), "edit", "still"
    tracker.record(edit, torch.ones(3), torch.tensor([1.0, 1.0, 2.0]))
    tracker.record(still, torch.ones(3), torch.ones(3))
    tracker.record(edit, torch.ones(3), uncomparable())
    assert tracker.had_effect([edit])
    assert tracker.had_effect([still, edit])
    assert not tracker.had_effect([still])
    assert not tracker.had_effect([])


def test_an_edit_that_hands_back_what_it_was_given_is_not_compared():
    tracker, edit, same = EffectTracker(), "edit", uncomparable()
    tracker.record(edit, same, same)
    assert not tracker.had_effect([edit])


def test_an_edit_that_starts_late_is_found():
    tracker, edit = EffectTracker(), "edit"
    for _ in range(9):
        tracker.record(edit, torch.ones(3), torch.ones(3))
    tracker.record(edit, torch.ones(3), torch.zeros(3))
    assert tracker.had_effect([edit])


def test_an_accelerator_is_asked_at_tokens_1_2_4_8_and_at_the_end():
    with pretended() as waited:
        tracker, edit, ones = EffectTracker(), "edit", torch.ones(3, device=FIRST)
        read_at = []
        for token in range(1, 20):
            tracker.record(edit, ones, ones.clone())
            before = len(waited)
            tracker.read_when_due(token)
            read_at += [token] * (len(waited) - before)
        assert read_at == [1, 2, 4, 8, 16]
        tracker.record(edit, ones, ones + 1)
        assert len(waited) == len(read_at)
        assert tracker.had_effect([edit])
        waits = len(waited)
        tracker.record(edit, ones, ones + 2)
        assert tracker.had_effect([edit])
        assert len(waited) == waits
