"""The worker of vLLM whose sampler combines groups; it is the platform's own, with its runner's sampler wrapped."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from lvlm_guard.engines.vllm.configuration import refuse_configuration
from lvlm_guard.engines.vllm.first_runner import FirstRunner
from lvlm_guard.engines.vllm.runner_guard import RunnerGuard
from lvlm_guard.engines.vllm.runner_view import RunnerView


def _find_platform_worker() -> Any:
    """Return the class of workers that vLLM would use here."""
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker  # noqa: PLC0415 - of this platform alone

        return CPUWorker
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415 - as above

    return Worker


PLATFORM_WORKER: Any = _find_platform_worker()


class GuardedWorker(PLATFORM_WORKER):
    """The platform's worker, with groups combined round its sampler."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model as the platform does, then put the hooks on the sampler.

        Raises:
            ModeRefused: The engine is configured in a way that groups would be wrong in; before anything is loaded.
        """
        asynchronous = bool(self.vllm_config.scheduler_config.async_scheduling)
        refuse_configuration(self.vllm_config, is_asynchronous=asynchronous)
        loaded = super().load_model(*args, **kwargs)
        self._guard = RunnerGuard(self._view_runner())
        self._undo_guard = self._guard.install()
        return loaded

    def _view_runner(self) -> RunnerView:
        """Return what groups look at in the runner that the engine chose."""
        if not self.use_v2_model_runner:
            return FirstRunner(self.model_runner)
        from lvlm_guard.engines.vllm.second_runner import SecondRunner  # noqa: PLC0415 - needs Triton

        return SecondRunner(self.model_runner)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step; what failed in its groups travels with the output."""
        self._guard.begin(scheduler_output)
        return self._guard.attach_failures(super().execute_model(scheduler_output))

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample a step; what failed in its groups travels with the output."""
        return self._guard.attach_failures(super().sample_tokens(grammar_output))

    def guard_counts(self) -> dict[str, int]:
        """Return what happened round the sampler since the engine started."""
        return self._guard.sampler.counts.as_dict()

    def shutdown(self) -> None:
        """Take the hooks off, and end as the platform's worker does."""
        if hasattr(self, "_undo_guard"):
            self._undo_guard()
        super().shutdown()
