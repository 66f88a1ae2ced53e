"""What groups cost in vLLM: `python benchmarks/vllm_throughput.py --out benchmarks/results`.

The bundled model in fp32 on a CPU, one thread, one process. At each concurrency the same requests run plainly, guarded by `vcd`, and
doubled: the very prompts of main and branch as requests that know nothing of each other. The three take turns in every round. Time is
processor time of the process, since other work may share the machine; ratios are of the same round. Needs vLLM: run it with the Python of
`make test-vllm`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Results, machine, spread
from tqdm import tqdm

from lvlm_guard import Stack, testbed
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.world.scenes import scenes

CONCURRENCY = (1, 8, 32)
NEW = 32
QUESTION = "What is in the picture?"
STACK = "vcd"
SHOWN = ("concurrency", "plain_ms", "guarded_ms", "guarded_to_plain", "guarded_to_doubled", "status")
NOTES = (
    "Processor milliseconds for each token of an answer, tokenizing and pictures included; medians over rounds with the 20th and 80th percentile.",
    "`doubled` runs the very prompts of main and branch as requests that know nothing of each other: what is left is the cost of keeping them in step and of combining.",
    "The model has 2.5 million parameters, so what the engine does round a forward weighs more here than on a large one.",
)


class Contest:
    """Requests that run in three ways on one engine."""

    def __init__(self) -> None:
        os.environ.update(
            {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        )
        from vllm import SamplingParams  # noqa: PLC0415 - reads the environment

        from lvlm_guard.engines.vllm import GuardedLLM  # noqa: PLC0415 - as above

        _, processor = testbed.load()
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        pictures = [scene.picture for scene in scenes("counterfactual", max(CONCURRENCY))]
        self._prompts = [{"prompt": text, "multi_modal_data": {"image": picture}} for picture in pictures]
        options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
        self._llm = GuardedLLM(str(WEIGHTS), stack=STACK, enable_prefix_caching=False, **options)
        self._parameters = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)

    def run_plain(self, count: int) -> int:
        """Answer so many requests plainly; returns the tokens."""
        return self._run(count, None)

    def run_guarded(self, count: int) -> int:
        """Answer them guarded."""
        return self._run(count, STACK)

    def run_doubled(self, count: int) -> int:
        """Run the prompts of main and of the branch plainly; returns the tokens of main."""
        stack = Stack.of(STACK)
        for prompt in self._prompts[:count]:
            for member in self._llm.build_group(prompt, self._parameters, stack):
                self._llm.add(member.prompt, self._parameters, None)
        self._llm.wait_for_completion(use_tqdm=False)
        return count * NEW

    def _run(self, count: int, stack: str | None) -> int:
        outputs = self._llm.generate(self._prompts[:count], self._parameters, stack=stack, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def check(self) -> None:
        """Make sure that no member was ever sampled alone."""
        counts = self._llm.guard_counts()
        if counts["alone"] or counts["failed"]:
            raise SystemExit(f"Groups fell apart: {counts}")


def measure(run: Callable[[int], int], count: int) -> float:
    """Return processor milliseconds for each token of an answer."""
    start = time.process_time()
    tokens = run(count)
    return (time.process_time() - start) * 1e3 / tokens


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contest = Contest()
    about = {
        **machine(torch.device("cpu")),
        "vllm_cpu": version("vllm-cpu"),
        "stack": STACK,
        "tokens": NEW,
        "rounds": options.rounds,
    }
    results = Results(options.out, "vllm_throughput", "Groups in vLLM", about, SHOWN, csv=False, notes=list(NOTES))
    ways = (contest.run_plain, contest.run_guarded, contest.run_doubled)
    for count in CONCURRENCY:
        for run in ways:
            run(count)  # what is compiled or cached at first use is in no round
        rounds = [[measure(run, count) for run in ways] for _ in tqdm(range(options.rounds), file=sys.stderr)]
        plain, guarded, doubled = (np.array(column) for column in zip(*rounds, strict=True))
        figures = {
            "plain_ms": plain, "guarded_ms": guarded, "guarded_to_plain": guarded / plain, "guarded_to_doubled": guarded / doubled,
        }  # fmt: skip
        columns = {
            key: round(value, 3)
            for name, values in figures.items()
            for key, value in spread(name, values.tolist()).items()
        }
        results.add(concurrency=count, **columns)
    contest.check()
    results.write()
    print(results.markdown())


if __name__ == "__main__":
    main()
