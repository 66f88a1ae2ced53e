"""What hooks see of the answer so far, what they leave in the report, and whose report it is."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from gold import SUPPRESSED
from PIL import Image
from toy_processor import toy_processor

from lvlm_guard import Bias, Guard, PluginRejected, Revision, hookimpl
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

BASE = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": SUPPRESSED}


@dataclass(frozen=True, eq=False)
class Watch:
    """Record what every forward shows."""

    name: ClassVar[str] = "watch"
    seen: ClassVar[list[Any]] = []

    @hookimpl
    def terms(self, gen):
        yield Bias(torch.zeros(gen.logits().shape[-1]).index_fill(0, torch.tensor([21]), 0.5))

    @hookimpl
    def observe(self, gen):
        self.seen.append((gen.generated.clone(), gen.drafts.clone(), gen.finished.clone(), gen.combined.clone()))


@pytest.fixture
def batch():
    model, _ = tiny("llava")
    return model, left_padded([inputs_for("llava", model, 1, text=text, seed=text) for text in (3, 6, 11)])


def watched(model, inputs, **settings):
    watch = Watch()
    watch.seen.clear()
    torch.manual_seed(0)
    output = Guard(model, toy_processor(), [watch]).generate(**inputs, **(BASE | settings))
    return output[:, inputs["input_ids"].shape[1] :], list(watch.seen)


@pytest.mark.parametrize(
    "mode", [{}, {"do_sample": True}, {"num_return_sequences": 2, "do_sample": True}, {"use_cache": False}]
)
def test_hooks_see_the_tokens_of_the_answer_so_far(batch, mode):
    answers, seen = watched(*batch, **mode)
    assert len(seen) == 6
    for step, (generated, drafts, _, _) in enumerate(seen):
        assert torch.equal(generated, answers[:, :step])
        assert drafts.shape == (len(answers), 0)


def find_end(answers):
    """A token that stands in one answer before it stands in all: it ends that row alone."""
    tokens = answers.unique().tolist()
    firsts = {token: [(row == token).nonzero().flatten().tolist()[:1] for row in answers] for token in tokens}
    return min((len(set(map(tuple, first))) == 1, token) for token, first in firsts.items())[1]


@pytest.mark.parametrize("ends", [1, 2])
def test_rows_are_finished_exactly_when_generate_pads_them(batch, ends):
    stops = [find_end(watched(*batch)[0]), 2][:ends]
    answers, seen = watched(*batch, eos_token_id=stops, pad_token_id=0)
    assert any(bool(finished.any()) and not bool(finished.all()) for _, _, finished, _ in seen), "no power"
    for step, (_, _, finished, _) in enumerate(seen):
        assert torch.equal(finished, torch.isin(answers[:, :step], torch.tensor(stops)).any(1))


def test_a_stop_string_finishes_its_row_at_once(batch):
    processor = toy_processor()
    stop = processor.tokenizer.convert_ids_to_tokens(find_end(watched(*batch)[0]))
    answers, seen = watched(
        *batch, stop_strings=[stop], tokenizer=processor.tokenizer, eos_token_id=2, pad_token_id=0, max_new_tokens=6
    )
    assert any(bool(finished.any()) and not bool(finished.all()) for _, _, finished, _ in seen), "no power"
    for step, (_, _, finished, _) in enumerate(seen[1:], 1):
        padded = (answers[:, step:] == 0).all(1)
        assert torch.equal(finished, padded)


def test_beams_are_followed(batch):
    answers, seen = watched(*batch, num_beams=3)
    last = torch.cat([seen[-1][0], seen[-1][3][:, -1].topk(8).indices], dim=1)
    for row, answer in enumerate(answers):
        beams = last[3 * row : 3 * row + 3]
        assert any(torch.equal(beam[:5], answer[:5]) and answer[5] in beam[5:] for beam in beams)


def test_drafts_of_an_assistant_follow_the_tokens_so_far():
    model, _ = tiny("llava")
    inputs = inputs_for("llava", model, 1, text=6, seed=6)
    lookup = {"prompt_lookup_num_tokens": 2, "eos_token_id": SUPPRESSED[-1]}  # 4.57 asks for an end token
    answers, seen = watched(model, inputs, max_new_tokens=12, **lookup)
    plain, _ = watched(model, inputs, max_new_tokens=12)
    assert torch.equal(answers, plain)
    for generated, drafts, _, combined in seen:
        assert torch.equal(generated, answers[:, : generated.shape[1]])
        assert combined.shape[1] == drafts.shape[1] + 1


@dataclass(frozen=True, eq=False)
class Leave:
    """Leave a value."""

    name: ClassVar[str] = "leave"
    value: Any = None

    @hookimpl
    def observe(self, gen):
        gen.results["leave"] = self.value
        gen.results.setdefault("steps", []).append(gen.step)


def test_observers_leave_plain_values_in_the_report():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Leave({"scores": torch.tensor([1.5, 2.0])})])
    _, report = guard.generate_with_report(**inputs, **BASE)
    assert report.results == {"leave": {"scores": [1.5, 2.0]}, "steps": [0, 1, 2, 3, 4, 5]}
    assert report.to_dict()["results"] == report.results


@pytest.mark.parametrize("value", [object(), {1: 2}, float("nan"), torch.tensor([torch.inf]), [[{"a": {3}}]]])
def test_what_json_cannot_say_is_refused(value):
    model, inputs = tiny("llava")
    with pytest.raises(PluginRejected, match=r"gen\.results\['leave'\]"):
        Guard(model, None, [Leave(value)]).generate(**inputs, **BASE)


@dataclass(frozen=True)
class LeaveLoop:
    """Leave a list that holds itself."""

    name: ClassVar[str] = "leave_loop"

    @hookimpl
    def observe(self, gen):
        loop: list[Any] = []
        loop.append(loop)
        gen.results["loop"] = loop


def test_a_result_that_holds_itself_is_refused():
    model, inputs = tiny("llava")
    with pytest.raises(PluginRejected, match="holds itself"):
        Guard(model, None, [LeaveLoop()]).generate(**inputs, **BASE)


def test_threads_and_tasks_return_their_own_report():
    model, inputs = tiny("llava")
    guards = [Guard(model, None, [Leave(number)]) for number in range(3)]
    with ThreadPoolExecutor(2) as pool:
        pairs = list(pool.map(lambda guard: guard.generate_with_report(**inputs, **BASE), guards))
    assert [report.results["leave"] for _, report in pairs] == [0, 1, 2]

    async def ask(guard):
        return await asyncio.to_thread(guard.generate_with_report, **inputs, **BASE)

    async def ask_all():
        return [await ask(guard) for guard in guards]

    assert [report.results["leave"] for _, report in asyncio.run(ask_all())] == [0, 1, 2]


def test_no_report_outlives_its_guard():
    model, inputs = tiny("llava")
    reports = []
    for number in range(20):
        guard = Guard(model, None, [Leave(number)])
        guard.generate(**inputs, **BASE)
        reports.append(weakref.ref(guard.report))
    del guard
    gc.collect()
    assert not any(report() for report in reports)


@dataclass(frozen=True, eq=False)
class Ask:
    """Ask in `finish`, and note which calls are inner ones."""

    name: ClassVar[str] = "ask"

    @hookimpl
    def finish(self, gen):
        gen.ask(["a b ?"], 0)
        yield Revision(0, "a b c")


@dataclass(frozen=True, eq=False)
class Count:
    """Note which calls are inner ones."""

    name: ClassVar[str] = "count"
    inner: ClassVar[list[bool]] = []

    @hookimpl
    def start(self, gen):
        self.inner.append(gen.is_inner)


def test_questions_are_marked_and_do_not_replace_the_report():
    model, _ = tiny("llava")
    count = Count()
    count.inner.clear()
    guard = Guard(model, toy_processor(), [Ask(), count])
    inputs = guard.inputs(images=Image.new("RGB", (30, 30), "red"), text="<image> a b")
    _, report = guard.generate_with_report(**inputs, **BASE)
    guard.generate(**inputs, **BASE)
    assert count.inner == [False, True, False, True]
    assert report.tokens == 6
    assert (report.strategies[0].had_effect, report.strategies[0].tokens_changed) == (True, None)
    assert report.strategies[0].answers_revised == 1
