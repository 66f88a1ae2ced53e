"""The engine without a server round it: deadlines, the end, and a model that stays what it was."""

import asyncio
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from served import draw_picture
from served_stacks import Moody, Slow

from lvlm_guard import Generation, Stack, hookimpl
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.engine import ChatJob, ChoiceEnd, JobEnd, TextPiece
from lvlm_guard.serving.hugging_face import HuggingFaceEngine
from lvlm_guard.serving.settings import ServingLimits

STACKS = {"vcd": Stack.of("vcd"), "moody": Stack.of([Moody()]), "plain": Stack.of(None)}


@pytest.fixture
def engine(guard):
    slow = Stack.of([Slow(guard.model.generation_config.eos_token_id)])
    engine = HuggingFaceEngine(guard, STACKS | {"slow": slow}, ServingLimits(max_batch=4, gather_seconds=0.05))
    yield engine
    engine.stop()


def job(stack, text="what is in the picture ?", tokens=6, seconds=60.0):
    content = [{"type": "image", "image": draw_picture(1)}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return ChatJob("id", "me", messages, True, stack, None, tokens, (), 1, False, time.monotonic() + seconds)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


async def collect(engine, asked):
    return [event async for event in engine.answer(asked)]


def test_events_come_in_order(engine, guard):
    events = asyncio.run(collect(engine, job("vcd")))
    assert [type(event) for event in events[-2:]] == [ChoiceEnd, JobEnd]
    text = "".join(event.text for event in events[:-2] if isinstance(event, TextPiece))
    assert text == guard.chat(job("vcd").messages, stack="vcd", max_new_tokens=6)


def test_a_late_answer_is_an_error(engine):
    started = time.monotonic()
    with pytest.raises(ApiError) as late:
        asyncio.run(collect(engine, job("slow", tokens=400, seconds=1)))
    assert late.value.status == 504
    assert time.monotonic() - started < 15
    assert asyncio.run(collect(engine, job("vcd", tokens=2)))  # the worker is free again


@dataclass(frozen=True)
class Stuck:
    """Hangs for a while, and cannot be interrupted."""

    name: ClassVar[str] = "stuck"

    @hookimpl
    def start(self, gen: Generation) -> None:
        time.sleep(4)


def test_a_worker_that_is_stuck_is_known(guard):
    limits = ServingLimits(answer_seconds=0.5, gather_seconds=0)
    engine = HuggingFaceEngine(guard, {"stuck": Stack.of([Stuck()])}, limits)
    assert engine.is_alive
    with pytest.raises(ApiError) as late:
        asyncio.run(collect(engine, job("stuck", seconds=0.5)))
    assert late.value.status == 504
    assert not engine.is_alive
    until = time.monotonic() + 60
    while not engine.is_alive:  # the client is gone, and the worker comes back
        assert time.monotonic() < until
        time.sleep(0.05)
    engine.stop()


def test_what_waits_is_answered_before_the_end(engine):
    async def run():
        tasks = [asyncio.ensure_future(collect(engine, job(stack, tokens=3))) for stack in ("slow", "vcd", "plain")]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(engine.stop)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    assert all(isinstance(events[-1], JobEnd) for events in answers)
    assert not engine.is_alive
    with pytest.raises(ApiError) as stopping:
        asyncio.run(collect(engine, job("vcd")))
    assert stopping.value.status == 503


def test_the_model_is_what_it_was_after_failures(engine, guard):
    before = {name: value.clone() for name, value in guard.model.state_dict().items()}
    expected = guard.chat(job("vcd").messages, max_new_tokens=6)
    hooks = count_hooks(guard.model)  # transformers leaves some of its own
    for text in ("what is in the picture detector ?", "what is in the picture harbour ?"):
        with pytest.raises(ApiError):
            asyncio.run(collect(engine, job("moody", text, tokens=16)))
    assert all(torch.equal(value, before[name]) for name, value in guard.model.state_dict().items())
    assert count_hooks(guard.model) == hooks
    assert guard.chat(job("vcd").messages, max_new_tokens=6) == expected
