"""Settings of an engine and of requests under which groups would be silently wrong, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import ModeRefused


@dataclass(frozen=True)
class RefusedSetting:
    """A setting that guarded requests cannot have.

    Args:
        name: As the user knows it.
        reason: Why, and what to do.
        applies: Whether a configuration, or the parameters of a request, have it.
    """

    name: str
    reason: str
    applies: Callable[[Any], bool]


ENGINE: tuple[RefusedSetting, ...] = (
    RefusedSetting(
        "speculative decoding",
        "drafts are accepted by other logits than the combined ones: leave speculative_config out",
        lambda config: config.speculative_config is not None,
    ),
    RefusedSetting(
        "pipeline parallelism",
        "it samples a step later than it schedules, and has not been run: set pipeline_parallel_size=1",
        lambda config: config.parallel_config.pipeline_parallel_size > 1,
    ),
    RefusedSetting(
        "tensor parallelism",
        "it has not been run with groups: set tensor_parallel_size=1",
        lambda config: config.parallel_config.tensor_parallel_size > 1,
    ),
    RefusedSetting(
        "data parallelism",
        "members of a group could go to different engines: set data_parallel_size=1",
        lambda config: config.parallel_config.data_parallel_size > 1,
    ),
    RefusedSetting(
        "priority scheduling",
        "it preempts in the middle of a step, by request and not by group: set scheduling_policy='fcfs'",
        lambda config: config.scheduler_config.policy != "fcfs",
    ),
    RefusedSetting(
        "transfer of the cache between engines",
        "a part of a group could wait for it while the rest runs: leave kv_transfer_config out",
        lambda config: config.kv_transfer_config is not None,
    ),
    RefusedSetting(
        "context parallelism",
        "it shares out the positions of a step, and has not been run with groups: leave prefill_context_parallel_size at 1",
        lambda config: config.parallel_config.prefill_context_parallel_size > 1,
    ),
    RefusedSetting(
        "watermarking",
        "it has a sampler of its own, which has not been run with groups: leave watermark_config out",
        lambda config: config.watermark_config is not None,
    ),
    RefusedSetting(
        "prefill without chunks",
        "members wait one token before the end of their prompts: set enable_chunked_prefill=True",
        lambda config: not config.scheduler_config.enable_chunked_prefill,
    ),
)

REQUEST: tuple[RefusedSetting, ...] = (
    RefusedSetting(
        "n above 1",
        "each answer is a group of its own: pass the prompt as often as you want answers",
        lambda parameters: parameters.n > 1,
    ),
    RefusedSetting(
        "structured output",
        "its mask would come before the combination, and Guard's after it: leave structured_outputs out",
        lambda parameters: parameters.structured_outputs is not None,
    ),
)


def refuse_configuration(config: Any, *, is_asynchronous: bool) -> None:
    """Refuse an engine under whose settings groups would be wrong.

    Args:
        config: The engine's.
        is_asynchronous: Whether its scheduler is made for asynchronous scheduling.

    Raises:
        ModeRefused: Names the setting and the fix.
    """
    _refuse(ENGINE, config, "in vLLM")
    if bool(config.scheduler_config.async_scheduling) != is_asynchronous:
        state = "off" if is_asynchronous else "on"
        raise ModeRefused(
            f"asynchronous scheduling is {state} in this engine, and its scheduler of groups is made for the other way: pass "
            "async_scheduling to GuardedLLM, and not on a CPU, where vLLM switches it off."
        )


def refuse_parameters(parameters: Any, *, on_cpu: bool) -> None:
    """Refuse a guarded request with sampling parameters that a group cannot have.

    Raises:
        ModeRefused: Names the parameter and the fix.
    """
    _refuse(REQUEST, parameters, "for a guarded request in vLLM")
    if on_cpu and parameters.seed is not None:
        raise ModeRefused(
            "seed is refused for a guarded request in vLLM on a CPU: the engine cannot draw from a request's own generator there, "
            "with or without a guard. Leave seed out, or run on a GPU."
        )


def _refuse(settings: tuple[RefusedSetting, ...], subject: Any, where: str) -> None:
    for setting in settings:
        if setting.applies(subject):
            raise ModeRefused(f"{setting.name} is refused {where}: {setting.reason}.")
