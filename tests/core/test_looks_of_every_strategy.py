"""Strategies that are fitted, gated, controls or change the prompt answer on a look as on whole prompts, and none is left untried."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from fitted import TOKENS, make_artefact
from looks import BOTH, DETAILS, RESTS, STRATEGIES, TOLERANCE, build, continue_with, error_between, run_both

from lvlm_guard import Guard, HiddenEdit, Shift, hookimpl
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed.model import load as load_bundled
from lvlm_guard.testbed.world.scenes import scenes

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")
HEADS = [[layer, head] for layer in range(3) for head in range(4)]
INSIDE = {
    "adhh": {"name": "adhh", "params": {"tau": 0.0, "heads": HEADS}},
    "nullu": {"name": "nullu", "params": {"layers": [0, 3]}},
    "vti": {"name": "vti", "params": {"alpha_text": 20.0}},
}
"""What needs heads or directions of its model."""
WORDS = {
    "contrarian": {"name": "contrarian", "params": {"mass": 0.0}},
    "doubt": "doubt",
    "gated": {"name": "gated", "params": {"strategies": [{"name": "vdd"}], "margin": 100.0}},
    "mask_only": "mask_only",
    "olm": {"name": "olm", "params": {"gap": 1.0, "mass": 0.0}},
    "pba": {"name": "pba", "params": {"hint": " the answer is yes ."}},
    "temperature": "temperature",
    "transform": {"name": "transform", "params": {"kind": "blur", "strength": 1.0}},
    "yes_bias": {"name": "yes_bias", "params": {"strength": 9.0}},
}
"""What is about words, and is asked of the bundled model."""
ELSEWHERE = {"evidence", "icd", "patch_evidence", "revise", "ritual", "views"}
"""Tried in `test_looks_of_strategies.py`, or which find what they add for each call."""
REFUSED = {"opera", "rank"}
CHANGES_NOTHING = {"doubt"}
QUESTIONS = ["is there a dog ?", "is the mug left of the spoon ?", "describe this image ."]


def test_every_strategy_is_tried():
    tried = {*INSIDE, *WORDS, *ELSEWHERE, *REFUSED, *STRATEGIES}
    assert {one.name for one in catalogue() if one.distribution == "lvlm-guard"} <= tried


def fitted(name, architecture, guard, folder):
    entry = INSIDE[name]
    if name == "adhh":
        return [entry]
    path, _ = make_artefact(folder, name, architecture, guard.model, TOKENS.get(architecture, 0))
    return [{**entry, "params": {**entry["params"], "artefact": str(path)}}]


@pytest.mark.parametrize(
    "rests", [pytest.param(kind, marks=pytest.mark.slow if kind == "rows" else []) for kind in RESTS]
)
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(
    "architecture", ["llava", *(pytest.param(one, marks=pytest.mark.slow) for one in (*BOTH[1:], "gemma3"))]
)
def test_edits_with_an_artefact(architecture, name, rests, tmp_path):
    guard, inputs, length = build(architecture, None)
    plain, guard = guard, guard.using(fitted(name, architecture, guard, tmp_path))
    grouped = architecture == "gemma3" and rests == "ragged"
    expected, output = run_both(guard, inputs, length, RESTS[rests], **({} if grouped else DETAILS))
    if grouped:
        assert torch.equal(output, expected)
        return
    assert torch.equal(output.sequences, expected.sequences)
    assert error_between(output.logits, expected.logits) < TOLERANCE
    assert guard.report.prompts["main"] == "shared"
    unedited = plain.generate(**continue_with(inputs, length, RESTS[rests]), max_new_tokens=1, **DETAILS)
    assert error_between(unedited.logits[:1], expected.logits[:1]) > 0.02


@dataclass(frozen=True)
class Shifts:
    """Adds one row of a table to the states of every position."""

    name: ClassVar[str] = "shifts"
    table: Any
    __hash__ = object.__hash__

    @hookimpl
    def hidden(self, gen: Any) -> Any:
        yield HiddenEdit("residual", Shift(self.table[1]), (0, 2))


@pytest.mark.parametrize("inference", [False, True], ids=["counted", "of inference mode"])
def test_an_edit_by_a_tensor_is_shared_until_the_tensor_is_written_into(inference):
    plain, inputs, length = build("llava", None)
    batch = continue_with(inputs, length, RESTS["one"])
    with torch.inference_mode(inference):
        table = torch.randn(2, 32)
    guard = plain.using([Shifts(table)])
    with guard.looking(inputs) as look:
        first = look.generate(**batch, max_new_tokens=1, do_sample=False, **DETAILS)
        assert (guard.report.prompts == {"main": "shared"}) is not inference
        with torch.inference_mode(inference):
            table.neg_()
        second = look.generate(**batch, max_new_tokens=1, do_sample=False, **DETAILS)
    expected = guard.generate(**batch, max_new_tokens=1, do_sample=False, **DETAILS)
    assert (
        error_between(second.logits, expected.logits) < TOLERANCE < 0.02 < error_between(first.logits, expected.logits)
    )


@pytest.mark.parametrize("name", WORDS)
def test_words_and_controls(name):
    model, processor = load_bundled()
    guard, picture = Guard(model, processor, [WORDS[name]]), scenes("counterfactual", 1)[0].picture
    settings = {"max_new_tokens": 8, "do_sample": False}

    def ask(question):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def first(one, question):
        return one.generate(**one.inputs(messages=ask(question)), max_new_tokens=1, do_sample=False, **DETAILS).logits[
            0
        ]

    expected = [first(guard, question) for question in QUESTIONS]
    with guard.looking(picture) as look:
        answers = look.ask(QUESTIONS, **settings)
        alone = [look.first_logits([question]) for question in QUESTIONS]
    assert answers == [guard.chat(ask(question), **settings) for question in QUESTIONS]
    assert all(error_between([got], [wanted]) < TOLERANCE for got, wanted in zip(alone, expected, strict=True))
    plain = [first(guard.using(None), question) for question in QUESTIONS]
    moved = max(float((one - other).abs().max()) for one, other in zip(plain, expected, strict=True))
    assert moved == 0.0 if name in CHANGES_NOTHING else moved > 0.05
