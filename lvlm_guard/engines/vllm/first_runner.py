"""The first model runner of vLLM, whose sampler is a module and whose batch lies in the runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.engines.vllm.groups import Membership, count_blocks, read_membership
from lvlm_guard.engines.vllm.runner_view import Combine, LoadedRunner, Share
from lvlm_guard.forward.installations import hook_with_kwargs


class FirstRunner(LoadedRunner):
    """The `RunnerView` of Model Runner V1.

    Args:
        runner: The model runner, after its model was loaded.
    """

    @property
    def names(self) -> Sequence[str]:
        """See `RunnerView`."""
        names: list[str] = self._runner.input_batch.req_ids
        return names

    @property
    def discarded(self) -> Sequence[bool]:
        """See `RunnerView`."""
        discarded: list[bool] = self._runner.discard_request_mask.np[: len(self.names)].tolist()
        return discarded

    @property
    def ends(self) -> Tensor:
        """See `RunnerView`."""
        starts: Tensor = self._runner.query_start_loc.gpu
        return starts[1 : len(self.names) + 1].long() - 1

    def note(self, scheduler_output: Any) -> None:
        """Nothing: the runner keeps what came."""

    def knows(self, name: str) -> bool:
        """See `RunnerView`."""
        return name in self._runner.requests

    def find_place(self, name: str) -> Membership | None:
        """See `RunnerView`."""
        request = self._runner.requests.get(name)
        return None if request is None else read_membership(request.sampling_params)

    def find_ids(self, name: str) -> Sequence[int]:
        """See `RunnerView`."""
        ids: list[int] = self._runner.requests[name].prompt_token_ids
        return ids

    def find_rows(self, name: str) -> tuple[slice, int]:
        """See `RunnerView`."""
        index = self.names.index(name)
        rows = slice(*self._runner.query_start_loc.np[index : index + 2].tolist())
        return rows, int(self._runner.input_batch.num_computed_tokens_cpu[index])

    def find_blocks(self, name: str, positions: int) -> tuple[Tensor, int]:
        """See `RunnerView`."""
        table = self._runner.input_batch.block_table[0]
        ids = table.get_numpy_array()[self.names.index(name), : count_blocks(positions, table.block_size)]
        return torch.from_numpy(ids.copy()).long().to(self.device), int(table.block_size)

    def install(self, combine: Combine, share: Share) -> Callable[[], None]:
        """Put hooks on the sampler."""

        def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "logits" in kwargs:
                return args, {**kwargs, "logits": combine(kwargs["logits"])}
            return (combine(args[0]), *args[1:]), kwargs

        def after(_module: Any, _args: Any, output: Any) -> None:
            share(output.sampled_token_ids)

        hooks = [
            hook_with_kwargs(self._runner.sampler, before, before=True),
            self._runner.sampler.register_forward_hook(after),
        ]

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return undo
