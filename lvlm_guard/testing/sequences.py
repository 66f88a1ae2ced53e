"""The contract of strategies that own the loop, the prompt or the finished answer: tokens instead of logits.

```python
class TestMine(SequenceContract):
    strategy = Mine()
```
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from transformers.generation import BaseStreamer

from lvlm_guard.call.report import Report
from lvlm_guard.errors import GuardError, NoEffectWarning
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import is_marked
from lvlm_guard.outputs import sequences
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl
from lvlm_guard.strategy.names import strategy_name
from lvlm_guard.strategy.terms import Contrast
from lvlm_guard.testing import devices
from lvlm_guard.testing.contract import FORBIDDEN
from lvlm_guard.testing.intact import exploding, fingerprint, shares_positions, side_by_side
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

TEXTS = ("w9 <image> w21 w33", "w8 w40 <image> w7 w12 w13 w50 w51", "<image> w30")
CELLS, SIDE = 8, 32
END, SHORTEST = 7, 3
ALONE = (0,)
ALL = (0, 1, 2)


def pictures(count: int = len(TEXTS)) -> list[Image.Image]:
    """Draw pictures of coarse random cells, which stay different when they are made small."""
    draw = np.random.default_rng(0)
    drawn = [Image.fromarray(draw.integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)) for _ in range(count)]
    return [picture.resize((SIDE, SIDE), Image.Resampling.NEAREST) for picture in drawn]


@dataclasses.dataclass(frozen=True)
class Companion:
    """A contrast with the negative of the picture, for a stack with the strategy under test."""

    name: ClassVar[str] = "companion"

    weight: float = 0.7

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:  # noqa: ARG002 - a hook's signature is fixed
        """Add the negative."""
        yield Branch("negative", pixels=_negative)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Contrast]:  # noqa: ARG002 - as above
        """Contrast with it."""
        yield Contrast("negative", self.weight)


class SequenceContract:
    """The promises of every strategy that searches, edits the prompt or revises, checked on tiny models in fp32.

    The prompts come with pictures, through `guard.inputs`. Set `strategy`, at settings that matter on a tiny model; set
    `neutral`, `architectures`, `baseline` (the settings of plain generate to compare with), `explosions` (decoder forwards
    in which the model raises), or override `guard` where needed.
    """

    strategy: ClassVar[Any]
    neutral: ClassVar[Mapping[str, Any] | None] = None
    architectures: ClassVar[tuple[str, ...]] = ("llava", "qwen2_vl", "gemma3")
    tokens: ClassVar[int] = 6
    baseline: ClassVar[Mapping[str, Any]] = {}
    explosions: ClassVar[tuple[int, ...]] = (3,)
    companion: ClassVar[Any] = Companion()

    def guard(self, architecture: str, model: nn.Module, *strategies: Any, **options: Any) -> Any:
        """Build the guard under test."""
        return Guard(model, TinyProcessor(architecture), list(strategies), **options)

    def test_it_visibly_changes_the_tokens(self) -> None:
        """Some token of three answers differs from plain generate's."""
        for name, model in self._models():
            plain = self._plain(name, model, ALL, **self.baseline)
            guarded = self._new(name, model, ALL)
            assert not _equal(plain, guarded), f"{self._name}: {name} gives the same tokens, a test on it has no power"

    def test_neutral_is_plain_and_refuses_nothing(self) -> None:
        """At its neutral value every mode of generate works, and gives plain generate's tokens."""
        modes: tuple[dict[str, Any], ...] = (
            {"return_dict_in_generate": True, "output_logits": True, "output_scores": True},
            {"num_beams": 3, "num_return_sequences": 2},
            {"do_sample": True, "num_return_sequences": 2},
            {"use_cache": False},
        )
        for name, model in self._models():
            for mode in modes:
                plain, guarded = self._seeded(name, model, mode)
                assert torch.equal(plain, guarded), f"{self._name}: {name} {mode} neutral changes tokens"
            listeners = [_Listener(), _Listener()]
            self._plain(name, model, ALONE, streamer=listeners[0])
            self._new(name, model, ALONE, self._at_neutral(), streamer=listeners[1])
            assert listeners[0].tokens == listeners[1].tokens, f"{self._name}: {name} neutral streams other tokens"

    def test_the_model_is_left_as_it_was(self) -> None:
        """Weights, hooks, instance attributes and attention stay, after a call and after exceptions inside it."""
        for name, model in self._models():
            self._plain(name, model, ALONE)  # transformers leaves capture hooks of its own behind a first call
            before = fingerprint(model)
            self._new(name, model, ALONE)
            assert fingerprint(model) == before, f"{self._name}: the model is not what it was after a call"
            for at in self.explosions:
                with exploding(model, at):
                    self._new(name, model, ALONE)
                assert fingerprint(model) == before, f"{self._name}: the model is not what it was after an exception"

    def test_rows_of_a_batch_do_not_see_each_other(self) -> None:
        """A left-padded batch of three equals three single runs."""
        for name, model in self._models():
            batched = self._new(name, model, ALL)
            for row in ALL:
                single = self._new(name, model, (row,))
                assert _equal(single, batched[row : row + 1]), f"{self._name}: {name} row {row} differs inside a batch"

    def test_executors_agree_beside_a_branch(self) -> None:
        """With a branch of another strategy, one batch and a cache per branch give the same tokens."""
        for name, model in self._models():
            stack = (self.strategy, self.companion)
            batched, report = self._reported(name, model, ALL, *stack)
            assert report.executor == "batched", f"{self._name}: {name} ran {report.executor}: {report.reason}"
            sequential = self._new(name, model, ALL, *stack, executor="sequential")
            assert _equal(batched, sequential), f"{self._name}: {name} executors give other tokens"
            visible = not _equal(batched, self._new(name, model, ALL))
            assert visible, f"{self._name}: {name} the branch beside it does nothing, a test on it has no power"

    def test_the_same_call_gives_the_same_tokens(self) -> None:
        """Two calls are equal, whatever the global random state, which they leave alone."""
        for name, model in self._models():
            first = self._new(name, model, ALL)
            torch.manual_seed(1234)
            torch.randn(7)
            before = torch.get_rng_state()
            assert _equal(first, self._new(name, model, ALL)), f"{self._name}: {name} a repeated call differs"
            assert torch.equal(before, torch.get_rng_state()), f"{self._name}: {name} draws from the global generator"

    def test_a_forbidden_token_stays_forbidden(self) -> None:
        """Bad words are never chosen; unless answers are revised, none ends before `min_new_tokens`."""
        for name, model in self._models():
            answers = self._plain(name, model, ALL), self._new(name, model, ALL)
            banned = {0, *torch.cat([answer[:, :1].flatten() for answer in answers]).tolist()} - {END}
            limits: dict[str, Any] = {"bad_words_ids": [[token] for token in banned], "min_new_tokens": SHORTEST}
            new = self._new(name, model, ALL, eos_token_id=END, pad_token_id=END, **limits)
            assert new.numel(), f"{self._name}: {name} generates nothing, a test on it has no power"
            violations = banned.union(FORBIDDEN) & set(new.flatten().tolist())
            assert not violations, f"{self._name}: {name} chose the banned tokens {violations}"
            if not is_marked(getattr(self.strategy, "finish", None)):
                assert not (new[:, :SHORTEST] == END).any(), f"{self._name}: {name} ended before min_new_tokens"

    def test_two_threads_get_their_own_answers(self) -> None:
        """A guarded call beside plain ones on the same model."""
        for name, model in self._models():
            if not shares_positions(model):
                side_by_side(
                    self._name,
                    plain=functools.partial(self._plain, name, model, ALONE),
                    guarded=functools.partial(self._new, name, model, ALONE),
                )

    def test_a_model_on_two_devices_says_the_same(self) -> None:
        """Layers on two devices, as `device_map` spreads them: the strategy moves its tensors to the device of a layer."""
        name = self.architectures[0]
        expected = self._new(name, tiny(name)[0], ALL)
        spread = tiny(name)[0]
        with devices.two(spread, self._name):
            tokens = self._new(name, spread, ALL).cpu()
        assert _equal(expected, tokens), f"{self._name}: {name} on two devices gives other tokens"

    def test_the_default_device_does_not_matter(self) -> None:
        """Under `torch.set_default_device`, every tensor is made on a stated device."""
        name = self.architectures[0]
        model, _ = tiny(name)
        guard = self.guard(name, model, self.strategy)
        inputs = _prepare(guard, ALL)  # processors make their tensors on the default device
        with devices.no_default(self._name):
            tokens = _tokens(guard.generate, inputs, self.tokens, {})
        expected = self._new(name, model, ALL)
        assert _equal(expected, tokens), f"{self._name}: another default device changes tokens"

    @property
    def _name(self) -> str:
        return strategy_name(self.strategy)

    def _models(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, tiny(name)[0]) for name in self.architectures)

    def _at_neutral(self) -> Any:
        """Return the strategy at its neutral values."""
        neutral = self.neutral or getattr(self.strategy, "neutral", None)
        if not neutral:
            raise GuardError(f"{self._name}: name the neutral values, neutral = {{'rounds': 0}}.")
        return dataclasses.replace(self.strategy, **neutral)

    def _seeded(self, name: str, model: nn.Module, mode: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return plain and neutral tokens in a mode, from the same random state."""
        torch.manual_seed(0)
        plain = self._plain(name, model, ALL, **mode)
        torch.manual_seed(0)
        return plain, self._new(name, model, ALL, self._at_neutral(), **mode)

    def _plain(self, name: str, model: Any, rows: Sequence[int], **settings: Any) -> Tensor:
        """Return new tokens `[rows, tokens]` of the model alone."""
        inputs = _prepare(self.guard(name, model), rows)
        return _tokens(model.generate, inputs, self.tokens, settings)

    def _new(self, name: str, model: nn.Module, rows: Sequence[int], *stack: Any, **settings: Any) -> Tensor:
        """Return new tokens `[rows, tokens]` of a guarded call, by default of the strategy alone."""
        return self._reported(name, model, rows, *stack, **settings)[0]

    def _reported(
        self, name: str, model: nn.Module, rows: Sequence[int], *stack: Any, executor: str = "auto", **settings: Any
    ) -> tuple[Tensor, Report]:
        """Return the new tokens and the report."""
        guard = self.guard(name, model, *(stack or (self.strategy,)), executor=executor)
        return _tokens(guard.generate, _prepare(guard, rows), self.tokens, settings), guard.report


class _Listener(BaseStreamer):
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        """Keep tokens."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Ignore the end."""


def _negative(pixels: Tensor, _: Generator) -> Tensor:
    return -pixels


def _prepare(guard: Any, rows: Sequence[int]) -> Any:
    """Return the inputs of some of the prompts, with their pictures."""
    images = pictures()
    return guard.inputs(images=[images[row] for row in rows], text=[TEXTS[row] for row in rows])


def _tokens(generate: Any, inputs: Any, tokens: int, settings: Mapping[str, Any]) -> Tensor:
    base = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": list(FORBIDDEN), **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return sequences(generate(**inputs, **base))[:, inputs["input_ids"].shape[1] :]


def _equal(left: Tensor, right: Tensor) -> bool:
    """Return whether tokens are equal, apart from the padding of the shorter ones."""
    length = min(left.shape[1], right.shape[1])
    tail = torch.cat([left[:, length:].flatten(), right[:, length:].flatten()])
    return torch.equal(left[:, :length], right[:, :length]) and not bool(tail.any())


__all__ = ["Companion", "SequenceContract", "pictures"]
