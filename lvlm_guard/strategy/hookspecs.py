"""Typed specifications of every hook, and the marker that implementations carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pluggy

from lvlm_guard.strategy.branches import Branch, InputEdit
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.fitters import Fitter
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.loops import Revision, Search
from lvlm_guard.strategy.terms import Term

PROJECT = "lvlm_guard"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a strategy as a hook: `@hookimpl`, as pluggy has it."""


class Discovery:
    """Hooks of a distribution, found through the entry-point group `lvlm_guard`."""

    @hookspec
    def register_strategies(self, register: Callable[[type], None]) -> None:
        """Offer strategies: call `register` with each strategy class."""

    @hookspec
    def register_fitters(self, register: Callable[[Fitter], None]) -> None:
        """Offer fitters for strategies of the same distribution: call `register` with each `Fitter`."""


class Strategy:
    """Hooks of one strategy in a stack, called in the order of the stack; none while it has its neutral values."""

    @hookspec
    def start(self, gen: Generation) -> None:
        """Once, before any token is generated: refuse by raising `StrategyRefused`, run prompts, keep directions."""

    @hookspec
    def edit_inputs(self, gen: Generation) -> Iterable[InputEdit]:
        """Once, before everything else: changes of main's prompt or pictures."""
        raise NotImplementedError

    @hookspec
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Once: the extra branches."""
        raise NotImplementedError

    @hookspec
    def attention(self, gen: Generation) -> Iterable[AttentionEdit | AttentionCapture]:
        """Once: edits and observations of attention."""
        raise NotImplementedError

    @hookspec
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Once: edits of hidden states."""
        raise NotImplementedError

    @hookspec
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Once: layers whose next-token logits the strategy reads."""
        raise NotImplementedError

    @hookspec
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Each forward: the terms to add to main's logits."""
        raise NotImplementedError

    @hookspec
    def search(self, gen: Generation) -> Iterable[Search]:
        """Once: a decoding loop of its own; at most one in a stack."""
        raise NotImplementedError

    @hookspec
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Once, after decoding: revised answers, where there are any."""
        raise NotImplementedError

    @hookspec
    def observe(self, gen: Generation) -> None:
        """Each forward, after the terms are added: look, change nothing."""


def hook_names(space: type) -> tuple[str, ...]:
    """Return the names of the hooks specified in `space`, in the order of the source."""
    return tuple(name for name in vars(space) if hasattr(vars(space)[name], f"{PROJECT}_spec"))
