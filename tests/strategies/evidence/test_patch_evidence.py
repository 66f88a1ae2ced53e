"""margin * a + evidence * b + c on the first tokens of the answers, with evidence of a head on the model's own image tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from evidence_heads import MIXING, NAMES, SCALES, VALUES, Asking, image_features, make_head
from looks import BOTH, build
from lvlm_guard_evidence import PatchEvidence
from lvlm_guard_evidence.claims import Claim
from lvlm_guard_evidence.reading import evidence_of, remember_tokens
from twin import Twin

from lvlm_guard import Generation, Guard, InputError, NoEffectWarning, ProcessorNeeded, StrategyRefused, hookimpl
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

YES, NO = [26, 44], [15, 33]  # first letters of "yes", "Yes", "no" and "No"; a space begins them all and is left alone
RED, GREEN = [19], [8, 26]  # a capital R is spelt like a space
LEFT, RIGHT = [13, 31], [19]
ABOVE, BELOW = [20, 52], [21, 53]
GRIDS = {"llava": (5, 5), "qwen2_vl": (2, 2)}


@pytest.fixture
def asks(monkeypatch):
    """Let every prompt read as a question."""

    def ask(*questions):
        monkeypatch.setattr("against_twin.Words", lambda: Asking(*questions))

    return ask


def scaled(level, score):
    slope, offset = SCALES[level]
    return max(-20.0, min(20.0, slope * score + offset))


def direct(question, features, tensors, grid):
    """The evidence for each answer, from scratch."""
    weight, bias = tensors["weight"], tensors["bias"]
    scores = features @ weight.T
    if question.startswith("is there"):
        odds = scaled("object", float(scores[:, 0].logsumexp(0) + bias[0]))
        return [odds / 2, -odds / 2], YES, NO
    attention = scores[:, 0].softmax(0)
    if "left" in question or "above" in question:
        axis = int("left" in question)
        number = torch.arange(len(scores))
        places = ((number % grid[1], number // grid[1])[1 - axis] + 0.5) / grid[axis]
        offset = float(scores[:, 2].softmax(0) @ places - attention @ places)
        odds = scaled("relation", offset)
        first, second = (LEFT, RIGHT) if axis else (ABOVE, BELOW)
        both = " or " in question
        return [odds / 2, -odds / 2], first if both else YES, second if both else NO
    red, green = (attention @ scores[:, 3:] + bias[3:]).tolist()
    odds = [scaled("attribute", red - green), scaled("attribute", green - red)]
    if question.startswith("what"):
        return odds, RED, GREEN
    return [odds[1] / 2, -odds[1] / 2], YES, NO


def formula(question, kind, path_and_tensors, architecture):
    _, tensors = path_and_tensors
    a, b, c = MIXING[kind]

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        if prefix:
            return main, main
        evidence, *answers = direct(question, image_features(model, inputs)[0], tensors, GRIDS[architecture])
        margins = [float(main[ids].logsumexp(0)) for ids in answers]
        mixed = main.clone()
        for number, ids in enumerate(answers):
            margin, shown = (values[number] - sum(values) / 2 for values in (margins, evidence))
            mixed[ids] += (a - 1) * margin + b * shown + (c / 2, -c / 2)[number]
        return mixed, main

    return gold


@pytest.mark.parametrize("architecture", [name for name in OF_STRATEGIES if isinstance(name, str)])
@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("is there a mug ?", "existence"),
        ("is the mug green ?", "is_attribute"),
        ("what colour is the mug ?", "which_attribute"),
        ("is the mug left of the dining table ?", "is_side"),
        ("is the mug left or right of the dining table ?", "which_side"),
        ("is the mug above the dining table ?", "is_height"),
        ("is the mug above or below the dining table ?", "which_height"),
    ],
)
def test_patch_evidence(tmp_path, asks, architecture, question, kind):
    made = make_head(tmp_path / "head.safetensors", tiny(architecture)[0])
    asks(question)
    check([PatchEvidence(made[0])], formula(question, kind, made, architecture), architecture, tokens=2, power=0.05)


class TestPatchEvidence(BundledContract):
    strategy = PatchEvidence("made when needed", parser=lambda _: Claim("object", "mug"))

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def guard(self, model, *strategies, **options):
        path = self.folder / f"{model.config.model_type}.safetensors"
        if not path.exists():
            make_head(path, model, scales={**SCALES, "object": [0.5, 4.0]})
        made = [dataclasses.replace(strategy, artefact=path) for strategy in strategies]
        return Guard(model, Asking("anything"), made, **options)


@dataclasses.dataclass(frozen=True)
class Reads:
    """Keep what `evidence_of` says, in `terms`."""

    artefact: object
    keep: object

    @hookimpl
    def hidden(self, gen: Generation):
        yield remember_tokens(gen, self.artefact)

    @hookimpl
    def observe(self, gen: Generation):
        self.keep(evidence_of(gen, self.artefact))


def read(model, inputs, path, **settings):
    seen = []
    guard = Guard(model, Asking("?"), [Reads(path, seen.append)])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False, **settings)
    return seen


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("beams", [1, 3])
def test_evidence_of_a_row_is_its_own_in_any_batch(tmp_path, architecture, beams):
    model, _ = tiny(architecture)
    path, _ = make_head(tmp_path / "head", model)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    alone = [read(model, inputs, path)[0][0].existence("mug") for inputs in singles]
    assert len({round(each, 3) for each in alone}) == 3, "no power: the pictures show the same"
    together = read(model, left_padded(singles), path, num_beams=beams)
    for step in together:
        assert [each.existence("mug") for each in step] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("architecture", BOTH)
def test_of_several_pictures_the_one_that_shows_most_counts(tmp_path, architecture):
    guard, inputs, _ = build(architecture, None, pictures=2)
    path, tensors = make_head(tmp_path / "head", guard.model)
    row = read(guard.model, inputs, path)[0][0]
    features = image_features(guard.model, inputs)
    each = [float((one @ tensors["weight"][0]).logsumexp(0) + tensors["bias"][0]) for one in features]
    if architecture == "qwen2_vl":  # fences tell its pictures apart
        assert row.existence("mug") == pytest.approx(scaled("object", max(each)), abs=1e-4)
        assert row.relation("mug", "left", "spoon") is not None
    else:  # side by side with nothing between them they count as one of unknown shape
        assert row.existence("mug") == pytest.approx(
            scaled("object", float(torch.tensor(each).logsumexp(0) - tensors["bias"][0])), rel=0.2
        )
        assert row.relation("mug", "left", "spoon") is None


@pytest.mark.parametrize("architecture", BOTH)
def test_a_look_gives_what_whole_prompts_give(tmp_path, architecture):
    model, inputs = tiny(architecture)
    path, _ = make_head(tmp_path / "head", model)
    guard = Guard(model, Asking("is there a mug ?"), [PatchEvidence(path)])
    settings = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole, plain = guard.generate(**inputs, **settings).logits[0], model.generate(**inputs, **settings).logits[0]
    assert float((whole - plain).abs().max()) > 0.1
    with guard.looking(inputs) as look:
        for _ in range(2):  # no picture runs for the second
            assert torch.allclose(look.generate(**inputs, **settings).logits[0], whole, atol=1e-3)
            assert guard.report.prompts["main"] == "shared"


def ask_two(tmp_path, questions, **parameters):
    model, _ = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)
    batch = left_padded([inputs_for("llava", model, 1, text=text, seed=text) for text in (3, 6)])
    guard = Guard(model, Asking(*questions), [PatchEvidence(path, **parameters)])
    settings = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return guard, guard.generate(**batch, **settings).logits[0], model.generate(**batch, **settings).logits[0]


def test_what_is_not_known_is_left_alone_and_counted(tmp_path):
    with pytest.warns(NoEffectWarning):
        guard, guarded, plain = ask_two(tmp_path, ["is there a zebra ?", "why is there a mug at all"])
    assert torch.equal(guarded, plain)
    counts = guard.report.results["patch_evidence"]["counts"]
    assert counts == {"existence: name, value or place not known": 1, "question not read": 1}


def test_the_control_takes_the_evidence_of_the_next_request(tmp_path):
    _, own, plain = ask_two(tmp_path, ["is there a mug ?"])
    _, swapped, _ = ask_two(tmp_path, ["is there a mug ?"], swapped=True)
    a, b, c = MIXING["existence"]

    def evidence(guarded):
        margins = plain[:, YES].logsumexp(1) - plain[:, NO].logsumexp(1)
        return ((guarded[:, YES].logsumexp(1) - guarded[:, NO].logsumexp(1)) - a * margins - c) / b

    assert evidence(own).tolist() == pytest.approx(evidence(swapped).tolist()[::-1], abs=1e-3)
    assert abs(float(evidence(own)[0] - evidence(own)[1])) > 0.1


def test_the_control_passes_over_questions_about_the_same_picture(tmp_path):
    model, _ = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)
    first, second = (inputs_for("llava", model, 1, text=text, seed=text) for text in (3, 6))
    batch = left_padded([first, first, second])
    settings = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    questions = ["is there a mug ?"] * 3

    def ask(rows, asked, **parameters):
        guard = Guard(model, Asking(*asked), [PatchEvidence(path, **parameters)])
        return guard.generate(**rows, **settings).logits[0]

    swapped = ask(batch, questions, swapped=True)
    pair = ask(left_padded([first, second]), questions[:2], swapped=True)
    assert torch.allclose(swapped[0], pair[0], atol=1e-3)
    assert torch.allclose(swapped[1], pair[0], atol=1e-3)
    assert not torch.allclose(swapped[1], ask(batch, questions)[1], atol=1e-3)


def test_a_single_request_has_no_other_picture_and_says_so(tmp_path):
    model, inputs = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)
    guard = Guard(model, Asking("is there a mug ?"), [PatchEvidence(path, swapped=True)])
    guard.generate(**inputs, max_new_tokens=1)
    assert guard.report.results["patch_evidence"]["requests"] == ["existence: no other picture to take evidence of"]


def test_an_artefact_of_another_model_or_projector_is_refused(tmp_path):
    model, inputs = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)
    guard = Guard(model, Asking("is there a mug ?"), [PatchEvidence(path)])
    guard.generate(**inputs, max_new_tokens=1)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(1.5)
    with pytest.raises(StrategyRefused, match="projector or vision tower differs"):
        guard.generate(**inputs, max_new_tokens=1)
    other, other_inputs = tiny("llava", seed=1)
    with pytest.raises(StrategyRefused, match="weights differ"):
        Guard(other, Asking("?"), [PatchEvidence(path)]).generate(**other_inputs, max_new_tokens=1)


def test_what_cannot_work_is_refused(tmp_path):
    model, inputs = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)
    with pytest.raises(ProcessorNeeded, match="to read questions"):
        Guard(model, None, [PatchEvidence(path)]).generate(**inputs, max_new_tokens=1)
    guard = Guard(model, Asking("?"), [PatchEvidence(path, parser=lambda _: "mug")])
    with pytest.raises(InputError, match="a Claim or None"):
        guard.generate(**inputs, max_new_tokens=1)
    nameless, _ = make_head(tmp_path / "nameless", model, names=[])
    with pytest.raises(InputError, match="needs names in its artefact"):
        Guard(model, Asking("?"), [PatchEvidence(nameless)]).generate(**inputs, max_new_tokens=1)


def test_evidence_needs_remembered_tokens(tmp_path):
    model, inputs = tiny("llava")
    path, _ = make_head(tmp_path / "head", model)

    @dataclasses.dataclass(frozen=True)
    class Forgets:
        @hookimpl
        def observe(self, gen: Generation):
            evidence_of(gen, path)

    with pytest.raises(InputError, match="yield remember_tokens"):
        Guard(model, Asking("?"), [Forgets()]).generate(**inputs, max_new_tokens=1)


def test_names_and_values_are_as_made():
    assert (len(NAMES), len(VALUES)) == (3, 2)
