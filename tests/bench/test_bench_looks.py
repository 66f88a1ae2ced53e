"""Runs whose questions about one picture go on from a look answer as runs of whole prompts do."""

from __future__ import annotations

import json

import pytest

from lvlm_guard import Guard
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.running.looking import BatchGenerator
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.host.stack import Stack
from lvlm_guard.testbed.model import load
from lvlm_guard.testbed.suite import Scenes

WITHOUT = tuple(control for control in systems.CONTROLS if control != "greedy")


def plan(stacks, **changed):
    compared = systems.build_systems({name: Stack.of(stack) for name, stack in stacks.items()}, WITHOUT)
    return RunPlan({"scenes": SuiteChoice(Scenes(count=2), "ours", {"count": 2})}, compared, WITHOUT, **changed)


def test_a_run_on_looks_keeps_the_answers_of_whole_prompts(tmp_path):
    model, processor = load()
    stacks = {"vcd": "vcd", "vsv": "vsv", "opera": "opera"}
    whole, looks = (
        runner.run(
            plan(stacks, looks=looks), model, processor, tmp_path / str(looks), model_id="testbed", progress=False
        )
        for looks in (False, True)
    )
    for name in ("greedy", *stacks):
        pairs = list(zip(whole.read_answers(name, "scenes"), looks.read_answers(name, "scenes"), strict=True))
        assert [before.text for before, _ in pairs] == [after.text for _, after in pairs]
        assert [before.item.id for before, _ in pairs] == [after.item.id for _, after in pairs]
        margins = [(before.margin, after.margin) for before, after in pairs if before.margin is not None]
        assert all(before == pytest.approx(after, abs=2e-3) for before, after in margins)
        assert bool(margins) is (name != "opera")
    assert "looks" not in json.loads((tmp_path / "False" / "manifest.json").read_text())
    assert json.loads((tmp_path / "True" / "manifest.json").read_text())["looks"] is True


@pytest.mark.parametrize("looks", [False, True])
def test_questions_about_one_picture_run_whole_without_looks(looks):
    model, processor = load()
    suite = Scenes(count=1)
    questions = [item for item in suite.load(None).items if item.kind != "caption"]
    items = [item for item in questions if item.image == questions[0].image]
    picture = {"type": "image", "image": suite.picture(None, items[0].image)}
    prompts = [[{"role": "user", "content": [picture, {"type": "text", "text": item.prompt}]}] for item in items]
    settings = {"do_sample": False, "max_new_tokens": 1}
    generator = BatchGenerator(Guard(model, processor, "vcd"), settings, lambda: None)
    (part,), _ = generator.generate(items, prompts, looks=looks)
    assert len(items) > 1
    assert set(part.report.prompts.values()) == ({"shared"} if looks else set())
