"""Engines of vLLM in this process, and what `Guard` answers to the same requests."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from served import draw_picture
from torch import Tensor

from lvlm_guard import Guard, Stack, loading
from lvlm_guard.fitting.artefact import fit
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testbed.model import WEIGHTS

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
QUESTIONS = (
    "What is in the picture?", "Is there a dog in the picture?", "Describe the picture.", "Is there a boat in the picture?",
)  # fmt: skip
ROOMY = {"max_num_batched_tokens": 512, "max_num_seqs": 32}


def start_engine(model: Path = WEIGHTS, **options: Any) -> Any:
    """Return a guarded engine round a model, by default the bundled one, in fp32 and without compilation."""
    os.environ.update(SETTINGS)
    from lvlm_guard.engines.vllm import GuardedLLM  # noqa: PLC0415 - slow to import, and not everywhere

    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 200, "block_size": 32, **options}
    return GuardedLLM(str(model), stack="vdd", **settings)


def stop_engine(llm: Any) -> None:
    """End an engine, so that the next one can start in the same process."""
    from vllm.distributed import cleanup_dist_env_and_memory  # noqa: PLC0415 - slow to import, and not everywhere

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def find_scheduler(llm: Any) -> Any:
    """Return the scheduler of an engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def find_worker(llm: Any) -> Any:
    """Return the worker of an engine."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def find_runner(llm: Any) -> Any:
    """Return the model runner of an engine."""
    return find_worker(llm).model_runner


def find_runner_guard(llm: Any) -> Any:
    """Return what hooks groups into the runner of an engine."""
    return find_worker(llm)._guard


def find_sampler(llm: Any) -> Any:
    """Return what combines groups in an engine."""
    return find_runner_guard(llm).sampler


@functools.cache
def load_guard() -> Guard:
    """Return the guard of the bundled model."""
    model, processor = loading.load("testbed", "cpu")
    return Guard(model, processor)


@functools.cache
def fit_stack(kind: str, **params: Any) -> list[dict[str, Any]]:
    """Return a stack of one strategy whose artefact is fitted on the bundled model, once for a process."""
    folder = Path(tempfile.mkdtemp(prefix="lvlm-guard-fitted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    guard = load_guard()
    path = folder / f"{kind}.safetensors"
    fit(kind, guard.model, guard.processor, build_demonstrations(8)).save(path)
    return [{"name": kind, "params": {"artefact": str(path), **params}}]


def answer_mixed(llm: Any, stacks: Sequence[Any], parameters: Any) -> list[list[int]]:
    """Queue requests with stacks of their own, then run them together; return their tokens."""
    for index, stack in enumerate(stacks):
        with llm._using(stack):
            llm.enqueue(make_prompt(index), parameters, use_tqdm=False)
    return read_tokens(llm.wait_for_completion(use_tqdm=False))


def write_text(question: str) -> str:
    """Return a prompt as the model's template writes it."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text: str = load_guard().processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return text


def make_prompt(index: int) -> dict[str, Any]:
    """Return request number `index` as vLLM takes it."""
    return {"prompt": write_text(QUESTIONS[index % 4]), "multi_modal_data": {"image": draw_picture(index)}}


@functools.cache
def guard_answers(stack: str, indices: tuple[int, ...], settings: tuple[tuple[str, Any], ...]) -> list[list[int]]:
    """Return the tokens that `Guard` answers some requests with, in one batch; `stack` is the repr of one."""
    guard, tokenizer = load_guard(), load_guard().processor.tokenizer
    inputs = guard.inputs(
        images=[draw_picture(index) for index in indices],
        text=[write_text(QUESTIONS[index % 4]) for index in indices],
    )
    chosen = Stack.of(eval(stack))
    output = guard.generate(
        **inputs, stack=chosen, do_sample=False, tokenizer=tokenizer, **{name: _thaw(value) for name, value in settings}
    )
    return [_cut(row, tokenizer) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def expect(stack: Any, count: int, **settings: Any) -> list[list[int]]:
    """Return the tokens that `Guard` answers the first requests with."""
    frozen = tuple(sorted((name, _freeze(value)) for name, value in settings.items()))
    return guard_answers(repr(stack), tuple(range(count)), frozen)


def expect_at(stack: Any, indices: Sequence[int], **settings: Any) -> list[list[int]]:
    """Return the tokens that `Guard` answers some requests with, in batches of eight."""
    batches = [tuple(indices[start : start + 8]) for start in range(0, len(indices), 8)]
    frozen = tuple(sorted((name, _freeze(value)) for name, value in settings.items()))
    return [tokens for batch in batches for tokens in guard_answers(repr(stack), batch, frozen)]


def follow_answer(index: int, stack: Any, output: Any, temperature: float = 0.8, top_p: float = 0.9) -> bool:
    """Whether a sampled answer has the log-probabilities that `Guard` gives its tokens, all of them inside the nucleus."""
    answer = output.outputs[0]
    tokens = torch.tensor(list(answer.token_ids))
    logits = combined_logits(index, tokens.tolist(), stack)
    given = torch.tensor([answer.logprobs[step][token].logprob for step, token in enumerate(tokens.tolist())])
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    ranked = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    before = ranked.values.cumsum(-1) - ranked.values
    inside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, ranked.indices, before < top_p + 1e-4)
    return bool((given - chosen).abs().max() < 1e-3) and bool(inside.gather(-1, tokens[:, None]).all())


def combined_logits(index: int, tokens: list[int], stack: Any) -> Tensor:
    """Return the combined logits `[tokens, vocab]` that `Guard` gives along an answer that was sampled elsewhere."""
    guard, prompt = load_guard(), make_prompt(index)
    inputs = guard.inputs(images=prompt["multi_modal_data"]["image"], text=prompt["prompt"])
    start = inputs["input_ids"].shape[1]

    def follow(_: Any, ids: Tensor) -> list[int]:
        return [tokens[ids.shape[-1] - start]]

    output = guard.generate(
        **inputs, stack=stack, max_new_tokens=len(tokens), do_sample=False, prefix_allowed_tokens_fn=follow,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert output.sequences[0, start:].tolist() == tokens
    return torch.cat(list(output.logits)).float()


def cut_at_stop(tokens: list[int], stops: Sequence[str], decode: Callable[[list[int]], str]) -> list[int]:
    """Return the tokens up to the first whose text holds a stop."""
    ends = [end for end in range(1, len(tokens) + 1) if any(stop in decode(tokens[:end]) for stop in stops)]
    return tokens[: ends[0]] if ends else tokens


def find_words(words: Sequence[str]) -> list[list[int]]:
    """Return the token ids of words, as `Guard` takes bad words."""
    tokenizer = load_guard().processor.tokenizer
    return [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]


def read_tokens(outputs: list[Any]) -> list[list[int]]:
    """Return the tokens of an engine's outputs."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def _cut(row: list[int], tokenizer: Any) -> list[int]:
    """Leave out what stands behind the end of an answer."""
    while row and row[-1] == tokenizer.pad_token_id:
        row = row[:-1]
    return row


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _thaw(value: Any) -> Any:
    return [_thaw(each) for each in value] if isinstance(value, tuple) else value
