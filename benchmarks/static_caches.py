"""Decoding under a static cache, compiled, on the CPU: `python benchmarks/static_caches.py --out results`.

The bundled model and a random LLaVA of 0.4 billion parameters, on one thread. Plain generate and guards take turns in interleaved
rounds of one process. Time is processor time of the process; every ratio is to plain generate, compiled, in the same round. Needs
a C++ compiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lvlm_guard_contrastive import M3ID, VCD
from lvlm_guard_steering import VSV
from measuring import Budget, Results, machine
from shapes import LLAVA_SMALL, LLAVA_TINY
from torch import Tensor
from tqdm import tqdm
from transformers import CompileConfig
from variants import PLAIN, Race, Variant

from lvlm_guard import Guard, testbed
from lvlm_guard.testbed.world.scenes import scenes

SHOWN = ("model", "variant", "rounds", "executor", "step_ms", "step_ratio", "prefill_ratio", "status")
NOTES = (
    "On one thread, in processor time. Times are medians over rounds with the 20th and 80th percentile, of single steps after the first token. Compilation is not in them.",
    "`plain, compiled, twice the rows` is the floor of one branch: the same rows with no guard around them.",
    "The hidden edit (vsv) works inside the layers, so it runs uncompiled and warns.",
)
WARM_UP = -1


def variants(model: Any, inputs: Mapping[str, Tensor], backend: str, mode: str | None = None) -> list[Variant]:
    """Plain generate and guards under growing, static and compiled static caches."""
    config = CompileConfig(backend=backend, mode=mode)
    config._compile_all_devices = True  # noqa: SLF001 - transformers compiles on accelerators alone unless told so
    static: dict[str, Any] = {"cache_implementation": "static"}
    compiled = {**static, "compile_config": config}
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
    guards = {"noise branch": [VCD()], "noise and image-free branch": [VCD(), M3ID()], "hidden edit": [VSV()]}
    found = [
        Variant(PLAIN, model.generate, inputs, compiled),
        Variant("plain, compiled, again", model.generate, inputs, compiled),
        Variant("plain, compiled, twice the rows", model.generate, twice, compiled),
        Variant("plain, static", model.generate, inputs, static),
        Variant("plain, growing", model.generate, inputs),
    ]
    for name, stack in guards.items():
        guard = Guard(model, stack=stack)
        found.append(Variant(f"{name}, compiled", guard.generate, inputs, compiled, guard))
        found.append(Variant(f"{name}, growing", guard.generate, inputs, guard=guard))
    return found


def models(*, tiny: bool, bundled_alone: bool) -> dict[str, tuple[Any, Mapping[str, Tensor]]]:
    """Models with the inputs of one prompt."""
    if tiny:
        model = LLAVA_TINY.build(torch.device("cpu"), torch.float32)
        return {LLAVA_TINY.name: (model, LLAVA_TINY.inputs(model, 1))}
    bundled, processor = testbed.load()
    picture, text = scenes("counterfactual", 1)[0].picture, "describe this image ."
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    inputs = Guard(bundled, processor, stack=[]).inputs(messages=[{"role": "user", "content": content}])
    if bundled_alone:
        return {"bundled": (bundled, inputs)}
    large = LLAVA_SMALL.build(torch.device("cpu"), torch.bfloat16)
    return {"bundled": (bundled, inputs), LLAVA_SMALL.name: (large, LLAVA_SMALL.inputs(large, 1))}


def measure(race: Race, repeat: int, budget: Budget) -> None:
    """Run every variant once, which compiles it, and then the rounds."""
    race.run(WARM_UP, budget)
    for timings in race.timings.values():
        timings.pop(WARM_UP)
    for number in tqdm(range(repeat), unit="round"):
        race.run(number, budget)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--bundled", action="store_true", help="the bundled model alone")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    device, backend = torch.device("cpu"), "eager" if options.tiny else "inductor"
    results = Results(
        options.out, "static_caches", "Static caches, compiled", machine(device), SHOWN, csv=False, notes=list(NOTES)
    )
    budget = Budget(options.seconds)
    for name, (model, inputs) in models(tiny=options.tiny, bundled_alone=options.bundled).items():
        torch._dynamo.reset()  # noqa: SLF001 - public in torch's own guides
        race = Race(variants(model, inputs, backend), options.new_tokens, device, time.process_time)
        measure(race, options.repeat, budget)
        for variant in race.variants:
            results.add(model=name, **race.row(variant))
        results.write()
    return int(any(row["status"] != "ok" for row in results.rows))


if __name__ == "__main__":
    raise SystemExit(main())
