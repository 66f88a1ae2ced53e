"""What answers the units of a file by vLLM, as the command line names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard import loading
from lvlm_guard.bulk.pools import WorkerPool
from lvlm_guard.bulk.units import BulkUnit
from lvlm_guard.host.stack import Stack


@dataclass(frozen=True)
class VllmSource:
    """Starts vLLM round a model, guarded.

    Args:
        model: A folder, a hub id or `testbed`.
        dtype: As `vllm.LLM` takes it.
        stack: Of every answer.
        settings: `max_new_tokens`.
        options: Further ones of `vllm.LLM`.
    """

    model: str
    dtype: str
    stack: Stack
    settings: Mapping[str, Any]
    options: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return what decides the answers, as plain values."""
        engine = {"engine": "vllm", "engine_options": dict(self.options)}
        return {"model": self.model, "dtype": self.dtype, **self.stack.to_dict(), **self.settings, **engine}

    def open_pool(self) -> WorkerPool[BulkUnit]:
        """Start the engine.

        Raises:
            InputError: vLLM is not installed, or the processor has no chat template.
            ModeRefused: The engine is configured in a way that groups would be wrong in.
        """
        from lvlm_guard.engines.vllm import GuardedLLM  # noqa: PLC0415 - slow to import, and an extra
        from lvlm_guard.engines.vllm.bulk import VllmPool  # noqa: PLC0415 - as above

        llm = GuardedLLM(loading.resolve(self.model), stack=None, **{"dtype": self.dtype, **self.options})
        return VllmPool(llm, self.stack, self.settings)
