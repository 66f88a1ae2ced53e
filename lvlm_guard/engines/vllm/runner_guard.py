"""Groups of one model runner: opened, read and edited inside the layers, combined before the sampler, and shared out after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from lvlm_guard.engines.vllm.groups import Membership
from lvlm_guard.engines.vllm.inner_layers import InnerLayers
from lvlm_guard.engines.vllm.live_group import LiveGroup, StackCache
from lvlm_guard.engines.vllm.runner_view import RunnerView
from lvlm_guard.engines.vllm.sampling import GroupSampler, find_sampled
from lvlm_guard.engines.vllm.translation import describe_model
from lvlm_guard.errors import ModelRefused, describe_error
from lvlm_guard.request.fences import find_placeholder
from lvlm_guard.strategy.prompt import PromptStates


class RunnerGuard:
    """Groups of one model runner.

    Args:
        runner: The model runner, whose model was loaded.

    Attributes:
        sampler: What combines.
    """

    def __init__(self, runner: RunnerView) -> None:
        self._runner = runner
        self.sampler = GroupSampler(self._open_group, self._read_layers)
        self._layers, self._unread = self._find_layers()
        self._states: dict[str, dict[str, PromptStates]] = {}  # of prompts that were run for groups, by name
        self._stacks = StackCache()
        self._mains: dict[str, str] = {}  # requests of main, by group

    def install(self) -> Callable[[], None]:
        """Put hooks round the runner's sampler and on its model; returns what takes them off."""
        undo_sampler = self._runner.install(self._combine, self._share)
        hooks = [
            self._runner.model.register_forward_pre_hook(self._prepare_step),
            self._runner.model.register_forward_hook(self._finish_step),
        ]
        undo_layers = (lambda: None) if self._layers is None else self._layers.install()

        def undo() -> None:
            undo_sampler()
            for hook in hooks:
                hook.remove()
            undo_layers()

        return undo

    def begin(self, scheduler_output: Any) -> None:
        """Note what comes with a step, and forget the groups that ended in the scheduler."""
        self._runner.note(scheduler_output)
        for group in getattr(scheduler_output, "guard_ended", ()):
            self._states.pop(group, None)
            self.sampler.forget(group)

    def attach_failures(self, output: Any) -> Any:
        """Return a runner's output that carries which groups failed in its step."""
        if not self.sampler.failures or not isinstance(output, (AsyncModelRunnerOutput, ModelRunnerOutput)):
            return output
        failures, self.sampler.failures = self.sampler.failures, {}
        if isinstance(output, AsyncModelRunnerOutput):
            return FailingOutput(output, failures)
        output.guard_failures = failures  # our scheduler reads it
        return output

    def _find_layers(self) -> tuple[InnerLayers | None, str]:
        """Return what reads and edits inside the layers, or why there is nothing."""
        if not self._runner.model_config.enforce_eager:
            return None, "Inner layers are read without compilation alone: set enforce_eager=True."
        try:
            return InnerLayers(self._runner, self.sampler), ""
        except ModelRefused as refusal:
            return None, str(refusal)

    @functools.cached_property
    def _model(self) -> Any:
        config = self._runner.model_config
        return describe_model(config.hf_config, cached_tokenizer_from_config(config))

    @functools.cached_property
    def _placeholder(self) -> int | None:
        return find_placeholder(self._runner.model_config.hf_config, None)

    def _prepare_step(self, _module: Any, _args: Any) -> None:
        """Open the groups whose main request is in the step, and say what is read and edited inside the layers."""
        if self._layers is None:
            return
        places = self._find_places()
        for name, place in places.items():
            if place.index == 0 and place.probe is None:
                self.sampler.open(place, name)
        self._layers.prepare(places)

    def _finish_step(self, _module: Any, _args: Any, _output: Any) -> None:
        if self._layers is not None:
            self._layers.finish()

    def _read_layers(
        self, row: int, logits: Tensor, readouts: Collection[tuple[int, bool]]
    ) -> dict[tuple[int, bool], Tensor]:
        """Return logits `[vocab]` of layers at a row, by (layer, whether normed)."""
        if self._layers is None:
            raise ModelRefused(self._unread)
        return self._layers.read(row, logits, readouts)

    def _combine(self, logits: Tensor) -> Tensor:
        """Return the logits that the sampler gets, where a row is of a group."""
        places = self._find_places()
        if not places:
            return logits
        rows = find_sampled(self._runner.names, self._runner.discarded)
        sampled = {name: place for name, place in places.items() if name in rows}
        members = {name: place for name, place in sampled.items() if place.probe is None}
        for name in sampled.keys() - members.keys():
            self._keep_states(sampled[name], rows[name], logits)
        return self.sampler.combine(logits, members, rows)

    def _keep_states(self, place: Membership, row: int, logits: Tensor) -> None:
        """Keep what a prompt that was run for a group left at its last position."""
        assert place.probe is not None
        if self._layers is None:
            self.sampler.break_group(place.group, self._unread)
            return
        try:
            hidden = self._layers.read_states(row, logits[row])
        except ModelRefused as refusal:
            self.sampler.break_group(place.group, describe_error(refusal))
            return
        states = PromptStates(hidden[None].float(), logits[row, None].float().clone())
        self._states.setdefault(place.group, {})[place.probe] = states

    def _share(self, tokens: Tensor) -> None:
        """Give branches main's token."""
        self.sampler.share_tokens(tokens)

    def _find_places(self) -> dict[str, Membership]:
        """Return the places of the requests of this step that belong to groups."""
        places = {name: self._runner.find_place(name) for name in self._runner.names}
        for group, name in list(self._mains.items()):
            if not self._runner.knows(name):
                self.sampler.forget(group)
                del self._mains[group]
        return {name: place for name, place in places.items() if place is not None}

    def _open_group(self, place: Membership, name: str) -> LiveGroup:
        assert place.stack is not None
        self._mains[place.group] = name
        ids = self._runner.find_ids(name)
        return LiveGroup(
            self._stacks.find(place.stack),
            ids,
            self._placeholder,
            self._model,
            states=self._states.pop(place.group, {}),
            outline=place.plan,
        )


class FailingOutput(AsyncModelRunnerOutput):
    """Output of an asynchronous step in which groups failed."""

    def __init__(self, output: AsyncModelRunnerOutput, failures: dict[str, str]) -> None:
        self._output, self._failures = output, failures

    def get_output(self) -> ModelRunnerOutput:
        """Return the output, with the groups that failed."""
        output = self._output.get_output()
        output.guard_failures = self._failures  # our scheduler reads it
        return output
