"""What `gen.margins` gives: the logits of yes and no at the first token, of the guarded model, equal to whole prompts run by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from lvlm_guard import Generation, Guard, InputError, Revision, hookimpl
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.sequences import Companion, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*", "ignore:.*revised nothing.*")
QUESTIONS = ["w14 w15", "w16 w17 w18", "w14 w19", "w60"]
YES, NO = ("w81", "w82"), ("w75", "w76")
TEXTS = ["w9 <image> w21 w33", "<image> w30"]


@dataclass(frozen=True)
class Asking:
    """Asks for margins when the answer is there, and keeps them."""

    name: ClassVar[str] = "asking"

    questions: tuple[str, ...] = tuple(QUESTIONS)
    yes: tuple[str, ...] = YES

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        gen.results[self.name] = [gen.margins(self.questions, row, yes=self.yes, no=NO) for row in range(len(TEXTS))]
        return []


def ask_for_margins(architecture: str, *others: Any, questions: Any = tuple(QUESTIONS), yes: Any = YES) -> Any:
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), [Asking(questions, yes), *others])
    inputs = guard.inputs(images=pictures(2), text=TEXTS)
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    return guard.report.results["asking"]


def compute_by_hand(architecture: str, picture: Any, question: str, *others: Any) -> float:
    model, _ = tiny(architecture)
    guard = Guard(model, TinyProcessor(architecture), list(others))
    inputs = guard.inputs(images=[picture], text=[f"user <image> {question}"])
    logits = guard.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0][0]
    yes, no = ([int(word[1:]) for word in words] for words in (YES, NO))
    return float(max(logits[yes]) - max(logits[no]))


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "gemma3", "mllama"])
@pytest.mark.parametrize("others", [(), (Companion(),)])
def test_margins_are_those_of_the_guarded_model(architecture, others):
    got = ask_for_margins(architecture, *others)
    wanted = [[compute_by_hand(architecture, one, text, *others) for text in QUESTIONS] for one in pictures(2)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-4, rtol=0)
    assert (torch.tensor(wanted)[0] - torch.tensor(wanted)[1]).abs().max() > 0.01  # the picture matters


def test_the_stack_matters():
    plain, contrasted = (torch.tensor(ask_for_margins("llava", *others)) for others in ((), (Companion(),)))
    assert (plain - contrasted).abs().max() > 0.01


def test_one_question_and_none():
    assert ask_for_margins("llava", questions=("w60",))[0] == pytest.approx([ask_for_margins("llava")[0][3]], abs=1e-4)
    assert ask_for_margins("llava", questions=()) == [[], []]


def test_a_yes_that_begins_as_a_no_is_refused():
    with pytest.raises(InputError, match="differ in their first tokens"):
        ask_for_margins("llava", yes=("w75", "w76"))


def test_before_the_answer_there_is_nothing_to_ask_about():
    gen = Generation(prompt=None)
    with pytest.raises(InputError, match=r"gen\.margins is available only in finish"):
        gen.margins(["w60"], 0)
    assert gen.margins([], 0) == []
