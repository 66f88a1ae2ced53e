"""Which edits changed anything is found out without comparing for ever, and without a wait at every token."""

import torch

from lvlm_guard.arithmetic.touched import Touched
from lvlm_guard.testing.devices import FIRST, pretended


class Uncomparable(torch.Tensor):
    def __ne__(self, other):
        raise AssertionError("compared once more")


def uncomparable():
    return torch.ones(3).as_subclass(Uncomparable)


def test_an_edit_that_changed_something_is_compared_no_more():
    touched, edit, still = Touched(), "edit", "still"
    touched.note(edit, torch.ones(3), torch.tensor([1.0, 1.0, 2.0]))
    touched.note(still, torch.ones(3), torch.ones(3))
    touched.note(edit, torch.ones(3), uncomparable())
    assert touched.any_of([edit])
    assert touched.any_of([still, edit])
    assert not touched.any_of([still])
    assert not touched.any_of([])


def test_an_edit_that_hands_back_what_it_was_given_is_not_compared():
    touched, edit, same = Touched(), "edit", uncomparable()
    touched.note(edit, same, same)
    assert not touched.any_of([edit])


def test_an_edit_that_starts_late_is_found():
    touched, edit = Touched(), "edit"
    for _ in range(9):
        touched.note(edit, torch.ones(3), torch.ones(3))
    touched.note(edit, torch.ones(3), torch.zeros(3))
    assert touched.any_of([edit])


def test_an_accelerator_is_asked_at_tokens_1_2_4_8_and_at_the_end():
    with pretended() as waited:
        touched, edit, ones = Touched(), "edit", torch.ones(3, device=FIRST)
        asked = []
        for token in range(1, 20):
            touched.note(edit, ones, ones.clone())
            before = len(waited)
            touched.look(token)
            asked += [token] * (len(waited) - before)
        assert asked == [1, 2, 4, 8, 16]
        touched.note(edit, ones, ones + 1)
        assert len(waited) == len(asked)
        assert touched.any_of([edit])
        told = len(waited)
        touched.note(edit, ones, ones + 2)
        assert touched.any_of([edit])
        assert len(waited) == told
