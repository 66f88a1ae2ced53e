"""What a guard costs where it has nothing to do, and what it leaves: `python benchmarks/inert.py --out results`.

Attaching and detaching; a call of an attached guard without strategies; a forward of plain generate on a model that another thread's
guarded call has wrapped. Each is timed alone, without a model's work in it, and set against a token of plain generate on a random LLaVA.
What is left is counted on a toy model: objects, and tensors, after a thousand guarded calls, and models and guards that nobody holds.
"""

from __future__ import annotations

import argparse
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import PERCENTILES, Budget, Results, Row, machine, spread
from shapes import LLAVA_SMALL, LLAVA_TINY, Shape
from torch import nn
from variants import PLAIN, Race, Variant

from lvlm_guard import Guard
from lvlm_guard.forward import wrapper
from lvlm_guard.forward.installations import leave, stand_in

CALLS, BLOCK = 400, 25
"""Blocks that are timed, and calls in each."""
ATTACH_GOAL = 1000.0
"""Microseconds."""
TOKEN_GOAL = 0.005
"""Of a token of plain generate."""
GENERATIONS, FEW_GENERATIONS, WARM_UP = 1000, 10, 30
"""Guarded calls after which objects are counted; with `--tiny`; and before the first count."""
GROWTH_GOAL = 50
"""Objects, whatever the number of calls: Python keeps a few of its own."""
SHOWN = ("what", "microseconds", "share_of_a_token", "count", "goal", "verdict")
NOTES = (
    (
        "Microseconds are medians over blocks of 25 calls with the 20th and 80th percentile; what the same calls cost with nothing "
        "attached is subtracted. Shares and verdicts are of the 20th percentile: whatever else runs only adds."
    ),
    "A call with an attached guard is one per answer, so its share is that of the tokens of one answer.",
    "A token is that of the fastest round. Counts are of guarded calls of a toy model, a third of them while attached.",
    "A token that takes long because the machine is busy makes shares smaller: read them beside the load average.",
)


class Returning(nn.Module):
    """Takes a call and returns at once, so that only what stands before it takes time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.generation_config = model.config, model.generation_config
        self._output = torch.zeros(1, 8, dtype=torch.long)

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return some ids."""
        return torch.cat([input_ids, self._output], dim=1)

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Return what it got."""
        return inputs


def time_blocks(call: Callable[[], object]) -> list[float]:
    """Microseconds of a call, one number for each block."""
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        for _ in range(BLOCK):
            call()
        found.append((time.perf_counter() - start) / BLOCK * 1e6)
    return found


def beyond(with_guard: Sequence[float], without: Sequence[float]) -> list[float]:
    """What a call costs more than without a guard."""
    plain = float(np.percentile(without, PERCENTILES[0]))
    return [value - plain for value in with_guard]


def time_attaching(stub: Returning) -> list[float]:
    """Microseconds to attach and detach."""
    guard = Guard(stub, stack=[])

    def attach() -> None:
        with guard.attached():
            pass

    return time_blocks(attach)


def time_calls(stub: Returning) -> list[float]:
    """Microseconds that an attached guard without strategies adds to a call."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    without = time_blocks(lambda: stub.generate(input_ids=ids))
    with Guard(stub, stack=[]).attached():
        return beyond(time_blocks(lambda: stub.generate(input_ids=ids)), without)


def time_forwards(stub: Returning) -> list[float]:
    """Microseconds that the wrapper of another thread's call adds to a forward."""
    without = time_blocks(lambda: stub(position=0))
    user = Returning(stub)
    stand_in(stub, "forward", wrapper._choose_forward(), user)  # noqa: SLF001 - what a guarded call puts there
    try:
        return beyond(time_blocks(lambda: stub(position=0)), without)
    finally:
        leave(stub, "forward", user)


def time_token(shape: Shape, model: Any, new_tokens: int, rounds: int) -> float:
    """Microseconds of a token of plain generate after the first, in the fastest round: whatever else runs only adds."""
    race = Race([Variant(PLAIN, model.generate, shape.inputs(model, 1))], new_tokens, torch.device("cpu"))
    race.warm_up(Budget(600))
    for number in range(rounds):
        race.run(number, Budget(600))
    return min(timing.decode for timing in race.timings[PLAIN].values()) * 1e3


def judge(what: str, microseconds: Sequence[float], goal: float, of_token: float | None) -> Row:
    """A row with its goal: of a token where the length of one is given, else in microseconds."""
    least = float(np.percentile(microseconds, PERCENTILES[0]))
    share = None if of_token is None else least / of_token
    reached = least if share is None else share
    return {
        "what": what,
        **spread("microseconds", microseconds),
        "share_of_a_token": share,
        "goal": goal,
        "verdict": "met" if reached <= goal else "missed",
    }


def count(kind: type) -> int:
    """How many objects of a kind are alive."""
    gc.collect()
    return sum(issubclass(type(entry), kind) for entry in gc.get_objects())


def generate_again(guards: Sequence[Guard], inputs: dict[str, torch.Tensor], times: int) -> None:
    """Call guards in turn, every third time while attached."""
    for number in range(times):
        guard = guards[number % len(guards)]
        if number % 3:
            guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        else:
            with guard.attached():
                guard.model.generate(**inputs, max_new_tokens=2, do_sample=False)


def count_what_is_left(generations: int) -> list[Row]:
    """Rows about what guarded calls leave: objects, tensors, and a model and guards that nobody holds any more."""
    model = LLAVA_TINY.build(torch.device("cpu"), torch.float32)
    inputs = LLAVA_TINY.inputs(model, 1)
    stacks: tuple[Any, ...] = ([], "vcd", "pai", "dola")
    guards = [Guard(model, stack=stack) for stack in stacks]
    generate_again(guards, inputs, WARM_UP)
    before = {kind: count(kind) for kind in (object, torch.Tensor)}
    generate_again(guards, inputs, generations)
    grown = {kind: count(kind) - number for kind, number in before.items()}
    held = [weakref.ref(model), weakref.ref(model.get_input_embeddings().weight), *map(weakref.ref, guards)]
    del model
    guards.clear()
    gc.collect()
    left = sum(reference() is not None for reference in held)
    return [
        limit(f"objects more after {generations} guarded calls", grown[object], GROWTH_GOAL),
        limit(f"tensors more after {generations} guarded calls", grown[torch.Tensor], 0),
        limit("models, weights and guards alive that nobody holds", left, 0),
    ]


def limit(what: str, number: int, goal: int) -> Row:
    """A row of a count that must not be above its goal."""
    return {"what": what, "count": number, "goal": goal, "verdict": "met" if number <= goal else "missed"}


def measure(shape: Shape, model: Any, new_tokens: int, rounds: int) -> tuple[float, list[Row]]:
    """Microseconds of a token, and all rows."""
    token, stub = time_token(shape, model, new_tokens, rounds), Returning(model)
    return token, [
        judge("attach and detach", time_attaching(stub), ATTACH_GOAL, None),
        judge("a call of an attached guard without strategies", time_calls(stub), TOKEN_GOAL, token * new_tokens),
        judge("a forward beside a guarded call of another thread", time_forwards(stub), TOKEN_GOAL, token),
    ]


def main(given: Sequence[str] | None = None) -> int:
    """Write `inert.json` and `inert.md`, print the page; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description="What a guard costs where it has nothing to do.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="a toy model, in seconds, to see that the script runs")
    asked = parser.parse_args(given)
    shape, new_tokens, rounds = (LLAVA_TINY, 4, 2) if asked.tiny else (LLAVA_SMALL, 25, 5)
    model = shape.build(torch.device("cpu"), torch.bfloat16)
    token, rows = measure(shape, model, new_tokens, rounds)
    rows += count_what_is_left(FEW_GENERATIONS if asked.tiny else GENERATIONS)
    about = {"model": shape.name, "token_microseconds": round(token, 1), "new_tokens": new_tokens}
    where = machine(torch.device("cpu"))
    results = Results(
        asked.out, "inert", "A guard with nothing to do", {**about, **where}, SHOWN, csv=False, notes=list(NOTES)
    )
    for row in rows:
        results.add(**row)
    results.write()
    print(results.markdown())
    return int(any(row["verdict"] == "missed" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
