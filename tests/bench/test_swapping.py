"""The swap controls: the same questions about another scene's picture, and a stack with evidence of another picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import quick_run
from quick_run import Letters, Toy

from lvlm_guard import Bias, Stack, StrategyRefused, hookimpl, testbed
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.running.batches import build_batches
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.running.prompting import find_swaps
from lvlm_guard.testbed.suite import Scenes

SWAP_ONLY = tuple(name for name in systems.CONTROLS if name not in ("greedy", "swap"))


def items(*names):
    """Items of clusters and pictures, written as `cluster/picture`."""
    pairs = [name.split("/") for name in names]
    return [
        Item(str(at), image or None, "a", "yes", "object", "is", cluster=cluster)
        for at, (cluster, image) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (["a/1", "b/2", "c/3"], {"1": "2", "2": "3", "3": "1"}),
        (["a/1", "a/1", "b/2"], {"1": "2", "2": "1"}),
        (["a/1", "a/2", "b/3"], {"1": "3", "2": "3", "3": "1"}),
        (["a/1", "b/1", "c/2"], {"1": "2", "2": "1"}),
        (["a/1", "b/", "c/2"], {"1": "2", "2": "1"}),
        (["a/1", "a/2"], {}),
        (["a/1", "b/1"], {}),
        (["a/", "b/"], {}),
    ],
)
def test_the_other_picture_is_one_of_the_next_scene_and_never_the_same(names, others):
    assert find_swaps(items(*names)) == others


class Seeing(Letters):
    """A processor that keeps what it was given: each prompt with the first pixel of its picture, None without one."""

    def __init__(self):
        self.seen = set()

    def __call__(self, text, images=None, **_):
        if not isinstance(text, str):
            pixels = [image.getpixel((0, 0))[0] for image in images] if images else [None] * len(text)
            self.seen |= set(zip(text, pixels, strict=True))
        return super().__call__(text)


def run(folder, plan, model=None, processor=None):
    return runner.run(
        plan, model or quick_run.Arithmetic(), processor or Letters(), folder, model_id="toy", progress=False
    )


def toy(pictures, stacks=None):
    compared = systems.build_systems(stacks or {}, SWAP_ONLY)
    return RunPlan({"toy": SuiteChoice(Toy(pictures), "ours", {"pictures": pictures})}, compared, SWAP_ONLY, batch=4)


def answers(record, system, suite="toy"):
    return {answer.item.id: answer.text for answer in record.read_answers(system, suite)}


def test_swap_answers_each_question_about_the_next_scenes_picture(tmp_path):
    processor = Seeing()
    record = run(tmp_path, toy(3), processor=processor)
    assert record.manifest["systems"]["swap"]["swapped_picture"] is True
    assert len(answers(record, "swap")) == len(answers(record, "greedy")) == len(record.items["toy"])
    for picture in range(3):
        pixels = {pixel for text, pixel in processor.seen if text == f"is {picture}?"}
        assert pixels == {20 * picture, 20 * ((picture + 1) % 3)}
    assert ("hello", None) in processor.seen


def test_a_suite_with_one_picture_goes_without_swap_and_says_so(tmp_path):
    record = run(tmp_path, toy(1))
    refusal = record.refusal("swap", "toy")
    assert refusal is not None
    assert "no picture of another scene" in refusal.reason
    assert len(answers(record, "greedy")) == len(record.items["toy"])


@dataclass(frozen=True)
class Witness:
    """Leans to yes, by evidence of its own picture or of another one of the call, which there must be."""

    name: ClassVar[str] = "witness"
    calls: ClassVar[list] = []

    swapped: bool = False

    @hookimpl
    def start(self, gen):
        pictures = len(gen.prompt.pictures)
        self.calls.append((self.swapped, pictures))
        if self.swapped and pictures < 2:
            raise StrategyRefused("witness: there is no other picture in this call.")

    @hookimpl
    def terms(self, gen):
        yield Bias(gen.logits()[0, 0].new_ones(gen.logits().shape[-1]).float() * 0)


def test_a_strategy_with_the_field_swapped_gets_a_control_with_it():
    stacks = {"both": Stack.of([Witness(), "vcd"]), "vcd": Stack.of("vcd"), "already": Stack.of(Witness(swapped=True))}
    compared = {system.name: system for system in systems.build_systems(stacks, SWAP_ONLY, sampled=True)}
    assert [name for name in compared if name.startswith("swap@")] == ["swap@both"]
    control = compared["swap@both"]
    assert (control.role, control.matched, control.sampled) == ("control", ("both",), True)
    assert [getattr(strategy, "swapped", None) for strategy in control.stack] == [True, None]
    assert compared["both"].stack.strategies[0].swapped is False
    off = systems.build_systems(stacks, systems.CONTROLS)
    assert [system.name for system in off] == list(stacks)


@pytest.mark.parametrize(("batch_size", "looks"), [(4, False), (4, True), (16, True)])
@pytest.mark.filterwarnings("ignore")
def test_swapped_evidence_finds_another_picture_in_every_call(tmp_path, batch_size, looks):
    Witness.calls.clear()
    suite = Scenes(count=3, captions=0)
    compared = systems.build_systems({"witness": Stack.of(Witness())}, SWAP_ONLY)
    plan = RunPlan(
        {"scenes": SuiteChoice(suite, "ours", {"count": 3, "captions": 0})},
        compared,
        SWAP_ONLY,
        batch=batch_size,
        looks=looks,
    )
    record = run(tmp_path, plan, *testbed.load())
    for system in ("greedy", "witness", "swap", "swap@witness"):
        assert record.refusal(system, "scenes") is None
        assert len(record.read_answers(system, "scenes")) == len(record.items["scenes"])
    assert answers(record, "swap@witness", "scenes") == answers(record, "greedy", "scenes")
    assert answers(record, "swap", "scenes") != answers(record, "greedy", "scenes")
    counts = {swapped: {pictures for own, pictures in Witness.calls if own is swapped} for swapped in (False, True)}
    groups = build_batches(record.items["scenes"], batch_size)
    for batch in groups:
        alone = len({item.image for item in batch.items}) == 1
        assert len(batch.items) + alone in counts[True], "a batch about one picture has a row for company"
        assert looks or len(batch.items) in counts[False]
    several = [len({item.image for item in batch.items}) > 1 for batch in groups]
    assert any(several) if batch_size == 16 else not all(several)
