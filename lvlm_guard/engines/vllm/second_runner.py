"""The second model runner of vLLM, whose sampler is a plain object and whose batch is made anew for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.v1.worker.gpu.sample.sampler import Sampler

from lvlm_guard.engines.vllm.groups import Membership, count_blocks, read_membership
from lvlm_guard.engines.vllm.runner_view import Combine, LoadedRunner, Share
from lvlm_guard.errors import ModelRefused


@dataclass(frozen=True, eq=False)
class NotedRequest:
    """A request of a group, as it came: the runner keeps neither its parameters nor its prompt apart.

    Args:
        place: Where it belongs.
        ids: Token ids of its prompt.
    """

    place: Membership
    ids: Sequence[int]


class SecondRunner(LoadedRunner):
    """The `RunnerView` of Model Runner V2.

    Args:
        runner: The model runner, after its model was loaded.

    Raises:
        ModelRefused: The model, or a setting, brings a sampler of its own.
    """

    def __init__(self, runner: Any) -> None:
        if type(runner.sampler) is not Sampler:
            raise ModelRefused(
                f"{type(runner.model).__name__} is sampled by {type(runner.sampler).__name__} in vLLM, and groups are combined "
                "before the engine's own sampler alone: run it in the process, Guard(model, processor)."
            )
        super().__init__(runner)
        self._batch: Any = None
        self._noted: dict[str, NotedRequest] = {}

    @property
    def names(self) -> Sequence[str]:
        """See `RunnerView`; none between steps, and in the runner's runs for warmth."""
        return () if self._batch is None else list(self._batch.req_ids)

    @property
    def discarded(self) -> Sequence[bool]:
        """See `RunnerView`."""
        reached = self._batch.num_computed_tokens_np + self._batch.num_scheduled_tokens
        discarded: list[bool] = (reached < self._batch.prefill_len_np).tolist()
        return discarded

    @property
    def ends(self) -> Tensor:
        """See `RunnerView`."""
        starts: Tensor = self._batch.query_start_loc
        return starts[1 : len(self.names) + 1].long() - 1

    def note(self, scheduler_output: Any) -> None:
        """Note which requests come and end with the step that is about to run; those that were preempted come again."""
        for name in scheduler_output.finished_req_ids:
            self._noted.pop(name, None)
        for request in scheduler_output.scheduled_new_reqs:
            place = read_membership(request.sampling_params)
            if place is not None:
                self._noted[request.req_id] = NotedRequest(place, request.prompt_token_ids)

    def knows(self, name: str) -> bool:
        """See `RunnerView`."""
        return name in self._noted

    def find_place(self, name: str) -> Membership | None:
        """See `RunnerView`."""
        noted = self._noted.get(name)
        return None if noted is None else noted.place

    def find_ids(self, name: str) -> Sequence[int]:
        """See `RunnerView`."""
        return self._noted[name].ids

    def find_rows(self, name: str) -> tuple[slice, int]:
        """See `RunnerView`."""
        index = self.names.index(name)
        rows = slice(*self._batch.query_start_loc_np[index : index + 2].tolist())
        return rows, int(self._batch.num_computed_tokens_np[index])

    def find_blocks(self, name: str, positions: int) -> tuple[Tensor, int]:
        """See `RunnerView`."""
        tables = self._runner.block_tables
        size = int(tables.block_sizes[0])
        ids = tables.input_block_tables[0][self.names.index(name), : count_blocks(positions, size)]
        return ids.long(), size

    def install(self, combine: Combine, share: Share) -> Callable[[], None]:
        """Put a sampler in the place of this runner's that combines before it, and keep the batch of each step."""
        runner, sampler, prepare = self._runner, self._runner.sampler, self._runner.prepare_inputs

        def keep_batch(*args: Any, **kwargs: Any) -> Any:
            self._batch = prepare(*args, **kwargs)
            return self._batch

        def sample(logits: Tensor, batch: Any) -> Any:
            if batch is not self._batch:
                return sampler(logits, batch)
            output = sampler(combine(logits), batch)
            share(output.sampled_token_ids)
            self._batch = None
            return output

        runner.prepare_inputs, runner.sampler = keep_batch, CombiningSampler(sampler, sample)

        def undo() -> None:
            del runner.prepare_inputs  # what the class has is seen again
            runner.sampler = sampler

        return undo


class CombiningSampler:
    """A sampler that is called in another way, and is the runner's own in everything else.

    Args:
        sampler: The runner's own.
        sample: What it is called by: logits `[rows, vocab]` and the batch of the step.
    """

    def __init__(self, sampler: Sampler, sample: Callable[[Tensor, Any], Any]) -> None:
        self._sampler, self._sample = sampler, sample

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """Return what is sampled."""
        return self._sample(logits, input_batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)
