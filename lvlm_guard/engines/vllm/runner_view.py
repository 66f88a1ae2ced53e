"""What groups look at in a model runner of vLLM, of which there are two: who is in a step, and in which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lvlm_guard.engines.vllm.groups import Membership

Combine = Callable[[Tensor], Tensor]
"""Returns the logits `[rows, vocab]` that the sampler gets, of the raw ones."""
Share = Callable[[Tensor], None]
"""Changes sampled tokens `[rows, 1]` in place."""


class RunnerView(Protocol):
    """A model runner whose model was loaded, and the step that it is in."""

    @property
    def model(self) -> Any:
        """The model that it runs."""
        ...

    @property
    def model_config(self) -> Any:
        """The engine's settings of it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Ids of the requests of the step, in the order of its rows."""
        ...

    @property
    def discarded(self) -> Sequence[bool]:
        """Which of them are in the middle of a prompt: what is sampled for them is thrown away."""
        ...

    @property
    def ends(self) -> Tensor:
        """Index of the last position of each of them in the step, int64 `[requests]`, on the device."""
        ...

    def note(self, scheduler_output: Any) -> None:
        """Note which requests come and end with the step that is about to run."""
        ...

    def knows(self, name: str) -> bool:
        """Whether the runner still holds a request that belongs to a group."""
        ...

    def find_place(self, name: str) -> Membership | None:
        """Return where a request belongs; None where it stands alone."""
        ...

    def find_ids(self, name: str) -> Sequence[int]:
        """Return the token ids of a request's prompt."""
        ...

    def find_rows(self, name: str) -> tuple[slice, int]:
        """Return the positions of a request in the step, and where the first of them lies in the request."""
        ...

    def find_blocks(self, name: str, positions: int) -> tuple[Tensor, int]:
        """Return the ids of the cache blocks that hold the first positions of a request, int64, and how many each holds."""
        ...

    def install(self, combine: Combine, share: Share) -> Callable[[], None]:
        """Put these round the sampler; returns what takes them off."""
        ...


class LoadedRunner:
    """What a `RunnerView` tells alike of both model runners.

    Args:
        runner: The model runner, after its model was loaded.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @property
    def model(self) -> Any:
        """See `RunnerView`."""
        return self._runner.model

    @property
    def model_config(self) -> Any:
        """See `RunnerView`."""
        return self._runner.model_config

    @property
    def device(self) -> torch.device:
        """See `RunnerView`."""
        device: torch.device = self._runner.device
        return device
