"""`vllm.LLM` with a stack: called as it is, answered as `Guard.generate` answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from vllm import LLM, RequestOutput, SamplingParams
from vllm.inputs import EngineInput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.transformers_utils.processor import cached_processor_from_config

from lvlm_guard.engines.errors import EngineFailed
from lvlm_guard.engines.vllm.checkpoint import digest_checkpoint, find_checkpoint
from lvlm_guard.engines.vllm.group_requests import EngineLimits, GroupBuilder, MemberRequest
from lvlm_guard.engines.vllm.prompts import PICTURES, PromptReader
from lvlm_guard.engines.vllm.translation import describe_model
from lvlm_guard.errors import InputError, ModeRefused, quote
from lvlm_guard.guard import DEFAULT_STACK
from lvlm_guard.host.stack import Stack

SCHEDULER = "lvlm_guard.engines.vllm.scheduler.GangScheduler"
ASYNC_SCHEDULER = "lvlm_guard.engines.vllm.async_scheduler.AsyncGangScheduler"
WORKER = "lvlm_guard.engines.vllm.worker.GuardedWorker"
RESERVED = ("scheduler_cls", "worker_cls")
ERROR = "error"
"""Reason of an answer that ended with an error."""


class GuardedLLM(LLM):
    """`vllm.LLM` whose answers are decoded by a stack of strategies.

    Each request becomes a group, main and a request for each branch, that the engine admits, samples, preempts and ends as one. Main's
    logits are combined before the sampler, so that penalties, bad words, `min_tokens` and sampling work on what the stack makes of
    them, as they do with `Guard`.

    Args:
        model: As `vllm.LLM` takes it.
        stack: What `Stack.of` takes; None is plain generation.
        **options: As `vllm.LLM` takes them. The scheduler and the worker are the guard's own, and the cache of processed images is
            off, since branches are made of them; pixels are normalised before they reach the engine.

    Raises:
        StackError: The stack cannot be built.
        ModeRefused: The engine is configured in a way that groups would be wrong in.
        InputError: `scheduler_cls` or `worker_cls` is passed, or a setting of processed images that branches cannot be made of.
    """

    def __init__(self, model: str, *, stack: Any = DEFAULT_STACK, **options: Any) -> None:
        refused = [name for name in RESERVED if options.get(name) is not None]
        if refused:
            raise InputError(f"{refused[0]} is the guard's own in a GuardedLLM: leave it out.")
        if options.get("mm_processor_cache_gb"):
            raise InputError(
                "mm_processor_cache_gb must be 0 in a GuardedLLM, which makes branches of processed images: leave it out."
            )
        if options.get("mm_device_do_normalize"):
            raise InputError(
                "mm_device_do_normalize must be False in a GuardedLLM, whose branches are made of normalised pixels: leave it out."
            )
        self.stack = Stack.of(stack)
        self._chosen: Stack | None = None
        is_asynchronous = bool(options.get("async_scheduling"))
        if is_asynchronous and self.runs_on_cpu:
            raise ModeRefused("Asynchronous scheduling is off in vLLM on a CPU: leave async_scheduling out.")
        settings = {
            "scheduler_cls": ASYNC_SCHEDULER if is_asynchronous else SCHEDULER,
            "worker_cls": WORKER,
            "mm_processor_cache_gb": 0,
            "mm_device_do_normalize": False,
            "async_scheduling": is_asynchronous,
        }
        super().__init__(model, **{**options, **settings})
        self._keep_pictures()
        self._builder = self._make_builder()

    def generate(self, *args: Any, stack: Any = ..., **kwargs: Any) -> list[RequestOutput]:
        """Answer prompts as `vllm.LLM.generate` does; `stack=` is for this call alone, None is plain generation.

        Raises:
            Refused: A request cannot be guarded here; none of the call is run.
            EngineFailed: Answers ended with an error; it holds all that there are.
        """
        with self._using(stack):
            return _check_outputs(super().generate(*args, **kwargs))

    def chat(self, *args: Any, stack: Any = ..., **kwargs: Any) -> list[RequestOutput]:
        """Answer conversations as `vllm.LLM.chat` does; `stack=` as for `generate`.

        Raises:
            Refused: As for `generate`.
            EngineFailed: As for `generate`.
        """
        with self._using(stack):
            return _check_outputs(super().chat(*args, **kwargs))

    def render(self, prompt: Any) -> EngineInput:
        """Return one prompt as the engine takes it, tokenized and its pictures processed."""
        return self._preprocess_cmpl_one(prompt, _keep_one_start(self.get_tokenizer(), prompt))

    def add(self, prompt: EngineInput, parameters: SamplingParams, stack: Any) -> str:
        """Queue a rendered prompt with a stack of its own, for a caller that steps `llm_engine`; returns the request's id.

        Raises:
            Refused: The request cannot be guarded here.
        """
        name = str(next(self.request_counter))
        self._queue(name, prompt, parameters, Stack.of(stack))
        return name

    def build_group(self, prompt: Any, parameters: SamplingParams, stack: Any) -> list[MemberRequest]:
        """Return the requests that a prompt becomes under a stack, main's first, without queueing them.

        Raises:
            Refused: The request cannot be guarded here.
        """
        return self._builder.build(Stack.of(stack), self.render(prompt), parameters)

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the engine runs on a CPU."""
        return bool(current_platform.is_cpu())

    def guard_counts(self) -> dict[str, int]:
        """Return what happened to groups since the engine started: `groups`, `steps`, `alone`, which stays 0, and `failed`."""
        counts: dict[str, int] = self.collective_rpc("guard_counts")[0]
        return counts

    def _add_request(self, prompt: EngineInput, params: Any, lora_request: Any = None, priority: int = 0) -> str:
        """Queue a request, or the group that it becomes."""
        stack = self.stack if self._chosen is None else self._chosen
        if not len(stack):
            return super()._add_request(prompt, params, lora_request, priority)
        if lora_request is not None or not isinstance(params, SamplingParams):
            raise ModeRefused(
                "LoRA adapters and pooling have not been run with groups in vLLM: leave them out, or pass stack=None."
            )
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return self._queue(str(next(self.request_counter)), prompt, params, stack)

    def _queue(self, name: str, prompt: EngineInput, parameters: SamplingParams, stack: Stack) -> str:
        """Queue main's request, then those that belong to it, all of which were checked before; returns main's inner id."""
        engine = self.llm_engine
        if not len(stack):
            return engine.add_request(name, prompt, parameters)
        main, *followers = self._builder.build(stack, prompt, parameters)
        tasks = engine.get_supported_tasks()
        requests = [
            self.input_processor.process_inputs(follower.id, follower.prompt, follower.parameters, tasks)
            for follower in followers
        ]
        inner_id = engine.add_request(name, main.prompt, main.parameters)
        for request in requests:
            engine.engine_core.add_request(request)
        return inner_id

    @contextmanager
    def _using(self, stack: Any) -> Iterator[None]:
        """Use another stack for the requests that are queued in this block."""
        before, self._chosen = self._chosen, None if stack is ... else Stack.of(stack)
        try:
            yield
        finally:
            self._chosen = before

    def _make_builder(self) -> GroupBuilder:
        config = self.llm_engine.vllm_config
        processor = cached_processor_from_config(config.model_config)
        blocks = config.cache_config.num_gpu_blocks
        limits = EngineLimits(
            model_length=config.model_config.max_model_len,
            sequences=config.scheduler_config.max_num_seqs,
            batched_tokens=config.scheduler_config.max_num_batched_tokens,
            block_size=config.cache_config.block_size,
            blocks=None if blocks is None else blocks - 1,
            on_cpu=self.runs_on_cpu,
            reads_layers=bool(config.model_config.enforce_eager),
        )
        folder = functools.partial(find_checkpoint, config.model_config.model, config.model_config.revision)
        model = dataclasses.replace(
            describe_model(config.model_config.hf_config, self.get_tokenizer()),
            digest_weights=functools.cache(lambda: digest_checkpoint(folder())),
        )
        return GroupBuilder(PromptReader(config.model_config.hf_config, processor), limits, model)

    def _keep_pictures(self) -> None:
        """Let rendered prompts keep the pictures that they are made of; a wrapper on the renderer of this engine alone."""
        render = self.renderer.process_for_engine

        def render_with_pictures(prompt: Any, *args: Any, **kwargs: Any) -> Any:
            rendered = render(prompt, *args, **kwargs)
            if pictures := _find_pictures(prompt):
                rendered[PICTURES] = pictures
            return rendered

        self.renderer.process_for_engine = render_with_pictures


def _keep_one_start(tokenizer: Any, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that keep the tokenizer from adding a start token where the text begins with it."""
    start = getattr(tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if start and str(prompt.get("prompt", "")).startswith(start) else {}


def _find_pictures(prompt: Mapping[str, Any]) -> list[Any]:
    """Return the PIL pictures of a prompt; none where one of them is something else."""
    images = (prompt.get("multi_modal_data") or {}).get("image")
    listed = list(images) if isinstance(images, Sequence) else [images]
    pictures = [getattr(image, "media", image) for image in listed]
    return pictures if all(isinstance(picture, Image.Image) for picture in pictures) else []


def _check_outputs(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """Return outputs, or raise where one ended with an error."""
    failed = {
        output.request_id: str(answer.stop_reason)
        for output in outputs
        for answer in output.outputs
        if answer.finish_reason == ERROR
    }
    if failed:
        first = next(iter(failed.items()))
        raise EngineFailed(
            f"{len(failed)} of {len(outputs)} requests ended with an error, the first of them {first[0]}: {quote(first[1], 600)} The "
            "outputs of all are in the error's `outputs`.",
            outputs,
        )
    return outputs
