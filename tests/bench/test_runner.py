"""Every item to every system: controls are there, batches are the same each time, and a refusal stays its own."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import quick_run
import torch
from PIL import Image
from quick_run import NO, WORDS, YES

from lvlm_guard import Stack, testbed
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import batches, gathering, runner, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.scoring import margins
from lvlm_guard.errors import GuardWarning, InputError
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed.suite import Scenes


@pytest.fixture(scope="module")
def bundled():
    return testbed.load()


def items(*images, tokens=2):
    return [Item(str(at), image, "a", "yes", "object", "is", max_new_tokens=tokens) for at, image in enumerate(images)]


def answers(record, system, suite="toy"):
    return {one.item.id: (one.text, one.tokens, one.margin) for one in record.read_answers(system, suite)}


def test_every_run_has_the_controls_and_says_what_was_switched_off(tmp_path):
    compared = systems.build_systems({"vcd": Stack.of("vcd")})
    assert tuple(one.name for one in compared) == (*[name for name in systems.CONTROLS if name != systems.BIAS], "vcd")
    assert {one.name for one in compared if one.role == "control"} == set(systems.CONTROLS) - {systems.BIAS}
    assert {one.name for one in compared if one.sampled} == {"sampling", "mask_only", "temperature"}
    record = quick_run.run(tmp_path)
    assert record.systems == ("greedy", "sampling")
    assert record.manifest["without"] == sorted(set(systems.CONTROLS) - {"greedy", "sampling"})
    assert record.manifest["generation"]["sampling"]["do_sample"] is True
    assert record.manifest["systems"]["sampling"]["decoding"] == "sampling"


def test_the_temperature_control_matches_the_contrast_it_is_compared_with():
    stacks = {
        "weak": {"name": "vcd", "params": {"alpha": 0.5}},
        "strong": "avisc",
        "both": ["vcd", "ritual"],
        "pai": "pai",
    }
    compared = systems.build_systems({name: Stack.of(one) for name, one in stacks.items()})
    controls = {one.name: one for one in compared if one.name.startswith("temperature")}
    told = {name: (one.stack.strategies[0].alpha, one.matched) for name, one in controls.items()}
    assert told == {
        "temperature@weak": (0.5, ("weak",)),
        "temperature@strong": (2.5, ("strong",)),
        "temperature@both": (4.0, ("both",)),
    }
    assert all(one.stack.strategies[0].beta == 0.1 for one in controls.values())
    alone = [one for one in systems.build_systems({"vcd": Stack.of("vcd")}) if one.name == "temperature"]
    assert [(one.stack.strategies[0].alpha, one.matched) for one in alone] == [(1.0, ("vcd",))]


def test_bundled_strategies_state_the_strength_of_their_contrast():
    strengths = {offer.name: offer.describe()["contrast_strength"] for offer in catalogue()}
    stated = {name: parameter for name, parameter in strengths.items() if parameter}
    assert stated == {
        "avisc": "alpha", "icd": "alpha", "ritual": "kappa", "sid": "alpha", "vcd": "alpha", "vdd": "alpha",
    }  # fmt: skip
    needy = ("gated", "nullu", "patch_evidence", "vti")  # these need strategies, or an artefact
    unfitted = [name for name in strengths if name not in needy]
    matched = {name: systems.contrast(Stack.of(name)) for name in unfitted}
    assert {name: strength for name, strength in matched.items() if strength} == {
        "avisc": (2.5, 0.1), "icd": (1.0, 0.1), "ritual": (3.0, 0.1), "sid": (1.0, 0.1), "vcd": (1.0, 0.1),
        "vdd": (1.0, 0.1),
    }  # fmt: skip


def test_a_strategy_of_anybody_may_state_the_strength_of_its_contrast():
    @dataclass(frozen=True)
    class Haze:
        name: ClassVar[str] = "haze"
        contrast_strength: ClassVar[str] = "weight"

        weight: float = 1.5

    assert systems.contrast(Stack.of([Haze()])) == (1.5, 0.0)
    assert systems.contrast(Stack.of([Haze(weight=0.25), "vcd"])) == (1.25, 0.1)


@pytest.mark.parametrize(
    ("stacks", "without", "words"),
    [
        ([], ["samplin"], "Did you mean 'sampling'"),
        (["pba"], [], "--without pba"),
        (["vcd", "vcd"], [], "Two stacks are called 'vcd'"),
        (["vdc"], [], "Did you mean"),
    ],
)
def test_a_line_up_that_cannot_be_is_refused(stacks, without, words):
    with pytest.raises(InputError, match=words):
        systems.build_systems(systems.read_stacks(stacks), without)


def test_a_control_may_be_asked_for_where_it_is_switched_off(tmp_path):
    path = tmp_path / "pba.toml"
    path.write_text('[[stack]]\nname = "pba"\nparams = {hint = " say yes"}\n')
    mine = systems.build_systems(systems.read_stacks([str(path)]), ["pba"])[-1]
    assert (mine.name, mine.role, mine.stack.strategies[0].hint) == ("pba", "stack", " say yes")


def test_items_of_a_picture_stay_together_in_batches_of_a_length():
    found = batches.build_batches([*items("a", "b", "a", "c", "b", "a"), *items(None, None), *items("a", tokens=9)], 4)
    told = [[(item.image, item.max_new_tokens) for item in one.items] for one in found]
    assert told == [
        [("a", 2)] * 3, [("b", 2), ("b", 2), ("c", 2)], [(None, 2)] * 2, [("a", 9)],
    ]  # fmt: skip
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert [len(one.items) for one in batches.build_batches(items(*"aaaaa"), 2)] == [2, 2, 1]


def test_a_limit_takes_whole_pictures():
    given = items("a", "b", "a", "c", "b", "c")
    assert [item.image for item in batches.limit_items(given, 5)] == ["a", "b", "a", "b"]
    assert len(batches.limit_items(given, 6)) == len(batches.limit_items(given, None)) == 6
    assert [item.image for item in batches.limit_items(given, 1)] == ["a", "a"]


def test_a_limit_below_the_questions_of_a_picture_rounds_up_and_says_so(tmp_path):
    with pytest.warns(
        GuardWarning, match="--limit 2 is less than the 3 items about p0, which stay together; 3 are taken"
    ):
        record = quick_run.run(tmp_path, quick_run.plan(limit=2))
    assert {suite: len(items) for suite, items in record.items.items()} == {"toy": 3, "small": 3}


def test_answers_do_not_depend_on_the_size_of_batches(tmp_path):
    """And the toy sees pads, so padding on the wrong side would show."""
    small, large = (quick_run.run(tmp_path / str(rows), quick_run.plan(batch=rows)) for rows in (2, 64))
    assert answers(small, "greedy") == answers(large, "greedy")
    assert len(set(answers(small, "greedy").values())) > 3


def test_the_same_seed_samples_the_same_and_another_differently(tmp_path):
    first, second, other = (quick_run.run(tmp_path / str(n), quick_run.plan(seed=s)) for n, s in enumerate((0, 0, 1)))
    assert answers(first, "sampling") == answers(second, "sampling") != answers(other, "sampling")
    assert answers(first, "greedy") == answers(other, "greedy")


def test_sampling_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    quick_run.run(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_a_margin_is_the_first_tokens_yes_minus_no():
    recorder = margins.MarginRecorder(margins.Tokens((YES,), (NO,)))
    scores = torch.zeros(2, len(WORDS))
    scores[0, YES], scores[1, NO] = 2.5, 1.0
    assert recorder(None, scores) is scores
    recorder(None, torch.full((2, len(WORDS)), 7.0))
    assert recorder.margins(2) == [2.5, -1.0]
    assert recorder.margins(10) == [None] * 10
    assert margins.MarginRecorder(margins.Tokens((YES,), (NO,))).margins(1) == [None]
    scores[:, YES] = -torch.inf
    removed = margins.MarginRecorder(margins.Tokens((YES,), (NO,)))
    removed(None, scores)
    assert removed.margins(2) == [None, None]


def test_margins_are_recorded_for_yes_no_items_alone(tmp_path):
    record = quick_run.run(tmp_path)
    for one in record.read_answers("greedy", "toy"):
        assert (one.margin is None) == (one.item.kind == "tell")


def test_a_tokenizer_that_does_not_tell_yes_from_no_gives_no_margin(tmp_path, monkeypatch):
    assert margins.Tokens.of(quick_run.Letters()) == margins.Tokens((YES,), (NO,))
    monkeypatch.setattr(quick_run.Letters, "__call__", lambda self, text, **_: {"input_ids": [7]})
    assert margins.Tokens.of(quick_run.Letters()) is None


def test_tokens_are_counted_to_the_first_end():
    generated = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 1, 1, 1], [5, 6, 0, 0]])
    assert margins.new_tokens(generated, [1], 0) == [2, 4, 1, 2]
    assert margins.new_tokens(generated, [1, 6], 1) == [2, 2, 1, 2]


def test_a_processor_without_a_template_and_a_suite_without_items_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_run.Letters, "chat_template", None)
    with pytest.raises(InputError, match="no chat template"):
        quick_run.run(tmp_path / "run")
    with pytest.raises(InputError, match="batch and limit"):
        gathering.gather(quick_run.plan(batch=0))
    monkeypatch.setattr(quick_run.Toy, "load", lambda self, data: quick_run.Loaded([]))
    with pytest.raises(InputError, match="toy has no items"):
        gathering.gather(quick_run.plan())
    monkeypatch.setattr(quick_run.Toy, "load", lambda self, data: quick_run.Loaded([*items("a"), *items("b")]))
    with pytest.raises(InputError, match="same id"):
        gathering.gather(quick_run.plan())


def test_a_picture_that_cannot_be_read_stops_the_run_and_not_one_system(tmp_path, monkeypatch):
    def missing(self, data, image):
        raise InputError("there is no picture p3")

    whole = quick_run.Toy.picture
    quick_run.run(tmp_path / "whole")
    monkeypatch.setattr(quick_run.Toy, "picture", lambda self, d, i: (missing if i == "p3" else whole)(self, d, i))
    with pytest.raises(InputError, match="p3"):
        quick_run.run(tmp_path / "run")
    monkeypatch.setattr(quick_run.Toy, "picture", whole)
    quick_run.run(tmp_path / "run")
    assert quick_run.kept(tmp_path / "run") == quick_run.kept(tmp_path / "whole")


def scenes(stacks, without=(), count=3, **changed):
    compared = systems.build_systems({name: Stack.of(one) for name, one in stacks.items()}, without)
    return RunPlan(
        {"scenes": SuiteChoice(Scenes(count=count), "ours", {"count": count})}, compared, tuple(without), **changed
    )


def test_a_stack_that_refuses_is_recorded_and_the_others_answer(tmp_path, bundled):
    stacks = {"rank": "rank", "vcd": "vcd", "blur": {"name": "transform", "params": {"kind": "blur"}}}
    asked = scenes(stacks, [one for one in systems.CONTROLS if one != "greedy"], count=2)
    record = runner.run(asked, *bundled, tmp_path, model_id="testbed", progress=False)
    refusal = record.refusal("rank", "scenes")
    assert (refusal.error, refusal.batch) == ("InputError", 0)
    assert "needs a scorer" in refusal.reason
    assert record.read_answers("rank", "scenes") == []
    counts = {name: len(record.read_answers(name, "scenes")) for name in ("greedy", "vcd", "blur")}
    assert set(counts.values()) == {len(record.items["scenes"])}
    assert record.refusal("vcd", "scenes") is None
    assert record.costs("vcd", "scenes")[0]["prefill"] == 2.0
    assert record.costs("greedy", "scenes")[0]["prefill"] == 1.0


def test_a_refused_stack_is_asked_again_when_the_run_is_taken_up(tmp_path, bundled, monkeypatch):
    """Its scorer is installed meanwhile, and is shown the pictures of the suite."""
    monkeypatch.setenv("LVLM_GUARD_ALLOW", "scorer_to_come:score")
    stack = {"name": "rank", "params": {"scorer": "scorer_to_come:score", "max_candidates": 2}}
    asked = scenes({"rank": stack}, systems.CONTROLS, count=1)
    record = runner.run(asked, *bundled, tmp_path, model_id="testbed", progress=False)
    assert "scorer_to_come" in record.refusal("rank", "scenes").reason
    seen = []
    score = SimpleNamespace(score=lambda picture, texts: seen.append(picture) or [0.0] * len(texts))
    monkeypatch.setitem(sys.modules, "scorer_to_come", score)
    record = runner.run(asked, *bundled, tmp_path, model_id="testbed", progress=False)
    assert record.refusal("rank", "scenes") is None
    assert [one.margin for one in record.read_answers("rank", "scenes")] == [None] * len(record.items["scenes"])
    pictures = {Scenes().picture(None, item.image).tobytes() for item in record.items["scenes"]}
    assert {one.tobytes() for one in seen} == pictures


def test_greedy_answers_are_those_of_the_model_asked_by_hand(tmp_path, bundled):
    """One prompt at a time, by plain generate, its first logits read directly."""
    model, processor = bundled
    record = runner.run(
        scenes({}, [one for one in systems.CONTROLS if one != "greedy"]),
        *bundled,
        tmp_path,
        model_id="t",
        progress=False,
    )
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    for one in record.read_answers("greedy", "scenes"):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.item.prompt}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True)
        picture = Scenes().picture(None, one.item.image)
        assert isinstance(picture, Image.Image)
        inputs = processor(text=text, images=picture, return_tensors="pt")
        output = model.generate(
            **inputs,
            max_new_tokens=one.item.max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = output.sequences[0, inputs["input_ids"].shape[1] :]
        assert one.text == processor.tokenizer.decode(new, skip_special_tokens=True)
        assert one.tokens == len(new)
        if one.item.truth in ("yes", "no"):
            assert one.margin == pytest.approx(float(output.logits[0][0, yes] - output.logits[0][0, no]), abs=1e-4)


@pytest.mark.slow
def test_controls_do_on_the_bundled_model_what_they_are_there_for(tmp_path, bundled):
    """Two leave greedy's margins in their order, one cuts the tail of sampling, one leans on yes."""
    record = runner.run(scenes({}, count=15), *bundled, tmp_path, model_id="testbed", progress=False)
    found = {name: answers(record, name, "scenes") for name in record.systems}
    asked = [one.item.id for one in record.read_answers("greedy", "scenes") if one.margin is not None]
    assert [found["sampling"][one][2] for one in asked] == pytest.approx(
        [found["greedy"][one][2] for one in asked], abs=1e-4
    )
    shifts = [found["yes_bias"][one][2] - found["greedy"][one][2] for one in asked]
    assert shifts == pytest.approx([2.0] * len(asked), abs=1e-3)
    changed = {name: sum(found[name][one][0] != found["greedy"][one][0] for one in found[name]) for name in found}
    assert changed["greedy"] == 0
    assert min(changed[name] for name in ("sampling", "pba", "yes_bias", "contrarian", "swap")) > 0, changed
