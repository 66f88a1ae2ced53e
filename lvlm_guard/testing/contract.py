"""The contract that every strategy inherits: subclass it in a test module and name the strategy.

```python
class TestMine(StrategyContract):
    strategy = Mine()
```
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lvlm_guard.errors import GuardError, NoEffectWarning
from lvlm_guard.guard import Guard
from lvlm_guard.strategy.names import strategy_name
from lvlm_guard.testing import devices
from lvlm_guard.testing.intact import exploding, fingerprint, shares_positions, side_by_side
from lvlm_guard.testing.recompute import Recorder
from lvlm_guard.testing.tiny import inputs_for, tiny

TOLERANCE = 1e-4
POWER = 0.1
NEAR = 1e-6
FORBIDDEN = (98, 99, 100, 101, 102, 103, 104)  # image tokens: a tiny model might say them
IMPLAUSIBLE = 1e3  # demoted tokens sit 1e4 below; fp32 has no digits left down there


class Words:
    """A tokenizer for strategies that need one: each letter becomes a token."""

    unk_token_id = 3

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the token ids of the first letters of a text."""
        return {"input_ids": [5 + ord(letter) % 50 for letter in text[:6]]}


class StrategyContract:
    """The promises of every strategy, checked on tiny models in fp32.

    Set `strategy`; set `architectures`, `neutral`, `waits` (how often each token may wait for the device), or override
    `guard` where needed. Each check fails with a message that names the broken promise.
    """

    strategy: ClassVar[Any]
    neutral: ClassVar[Mapping[str, Any] | None] = None
    architectures: ClassVar[tuple[str, ...]] = ("llava", "qwen2_vl", "gemma3")
    tokens: ClassVar[int] = 4
    waits: ClassVar[int] = 0

    def guard(self, model: nn.Module, *strategies: Any, **options: Any) -> Any:
        """Build the guard under test."""
        return Guard(model, Words(), list(strategies), **options)

    def test_it_visibly_changes_the_logits(self) -> None:
        """The effect on the first logits is above 0.1, and the report counts it."""
        for model, inputs in self._models():
            plain, guarded = _logits(_run(model, inputs, self.tokens)), self._logits(model, inputs)
            effect = _distance(plain[0], guarded[0], floor=True)
            assert effect > POWER, f"{self._name}: changes logits by {effect:.3f} only, a test on it has no power"

    def test_neutral_is_bit_identical(self) -> None:
        """At its neutral values the output equals plain generate bit for bit."""
        for model, inputs in self._models():
            plain = _run(model, inputs, self.tokens)
            guarded = self._guarded(model, inputs, self._at(1.0))
            assert torch.equal(plain.sequences, guarded.sequences), f"{self._name}: neutral changes tokens"
            equal = all(torch.equal(*pair) for pair in zip(plain.logits, guarded.logits, strict=True))
            assert equal, f"{self._name}: neutral changes logits"

    def test_near_neutral_is_near_plain(self) -> None:
        """At 1e-6 from neutral, plausible tokens keep their logits within 1e-4."""
        for model, inputs in self._models():
            plain = _logits(_run(model, inputs, self.tokens))
            guarded = self._logits(model, inputs, strategy=self._at(1 - NEAR))
            difference = _distance(plain[0], guarded[0])
            assert difference <= TOLERANCE, f"{self._name}: near neutral moves logits by {difference}"

    def test_the_model_is_left_as_it_was(self) -> None:
        """Weights, hooks, instance attributes and attention stay, after a call and after an exception inside it."""
        for model, inputs in self._models():
            _run(model, inputs, self.tokens)  # transformers leaves capture hooks of its own behind a first call
            before = fingerprint(model)
            self._guarded(model, inputs)
            assert fingerprint(model) == before, f"{self._name}: the model is not what it was after a call"
            with exploding(model):
                self._guarded(model, inputs)
            assert fingerprint(model) == before, f"{self._name}: the model is not what it was after an exception"

    def test_rows_of_a_batch_do_not_see_each_other(self) -> None:
        """A left-padded batch of three equals three single runs."""
        for name, (model, _) in zip(self.architectures, self._models(), strict=True):
            singles, batch = ragged(name, model)
            singly = [self._logits(model, inputs) for inputs in singles]
            batched = self._logits(model, batch)
            for row, expected in enumerate(singly):
                difference = _distance(expected, batched[:, row : row + 1])
                assert difference <= TOLERANCE, f"{self._name}: row {row} differs by {difference} inside a batch"

    def test_executors_and_recompute_agree(self) -> None:
        """One batch, a cache per branch, and no cache at all give the same logits; with beams, the same sequences."""
        for model, inputs in self._models():
            for beams in (1, 3):
                mode = {"num_beams": beams}
                recomputed = self._guarded(model, inputs, executor="sequential", use_cache=False, num_beams=beams)
                for executor in ("auto", "sequential"):
                    output = self._guarded(model, inputs, executor=executor, num_beams=beams)
                    assert torch.equal(output.sequences, recomputed.sequences), (
                        f"{self._name}: {executor} {mode} other tokens"
                    )
                    difference = _distance(_logits(recomputed), _logits(output))
                    assert difference <= TOLERANCE, f"{self._name}: {executor} {mode} differs by {difference}"

    def test_the_same_seed_gives_the_same_logits(self) -> None:
        """Two calls are equal, whatever the global random state."""
        for model, inputs in self._models():
            torch.manual_seed(4321)
            first = self._logits(model, inputs)
            torch.manual_seed(1234)
            torch.randn(7)
            again = self._logits(model, inputs)
            assert torch.equal(first, again), f"{self._name}: a repeated call differs by {_distance(first, again)}"

    def test_processors_see_the_combination(self) -> None:
        """Users' processors get the combined logits, not main's."""
        for model, inputs in self._models():
            plain, guarded = Recorder(), Recorder()
            _run(model, inputs, 1, logits_processor=[plain])
            self._guarded(model, inputs, tokens=1, logits_processor=[guarded])
            effect = _distance(plain.seen[0][1][None], guarded.seen[0][1][None], floor=True)
            assert effect > POWER, f"{self._name}: processors see main's logits; terms were added after them"

    def test_a_forbidden_token_stays_forbidden(self) -> None:
        """`min_new_tokens` and bad words give distinct, allowed tokens; nothing falls back to token 0."""
        for model, inputs in self._models():
            modes: tuple[dict[str, Any], ...] = ({}, {"do_sample": True}, {"num_beams": 2})
            for mode in modes:
                first = int(self._guarded(model, inputs).sequences[0, inputs["input_ids"].shape[1]])
                banned: dict[str, Any] = {
                    "bad_words_ids": [[first], [0]],
                    "eos_token_id": 7,
                    "pad_token_id": 0,
                    "min_new_tokens": 3,
                }
                new = self._guarded(model, inputs, **banned, **mode).sequences[:, inputs["input_ids"].shape[1] :]
                assert not torch.isin(new, torch.tensor([first, 0])).any(), (
                    f"{self._name}: {mode} a banned token was chosen"
                )
                assert not (new[:, :3] == 7).any(), f"{self._name}: {mode} ended before min_new_tokens"  # noqa: PLR2004

    def test_two_threads_get_their_own_answers(self) -> None:
        """A guarded call beside plain ones on the same model."""
        for model, inputs in self._models():
            if shares_positions(model):
                continue
            side_by_side(
                self._name,
                plain=functools.partial(_run, model, inputs, self.tokens),
                guarded=functools.partial(self._guarded, model, inputs),
            )

    def test_a_model_on_two_devices_says_the_same(self) -> None:
        """Layers on two devices, as `device_map` spreads them: the strategy moves its tensors to the device of a layer."""
        name = self.architectures[0]
        (model, inputs), (spread, _) = tiny(name), tiny(name)
        expected = self._logits(model, inputs)
        with devices.two(spread, self._name):
            logits = self._logits(spread, devices.move(inputs)).cpu()
        difference = _distance(expected, logits)
        assert difference <= TOLERANCE, f"{self._name}: {name} on two devices differs by {difference}"

    def test_no_token_waits_for_the_device(self) -> None:
        """A decode step reads nothing from the device that plain generate does not read; see `waits`."""
        name = self.architectures[0]
        plain = _count_plain_waits(name)
        model, _ = tiny(name)
        padded = ragged(name, model)[1]  # transformers reads every padding mask
        with devices.two(model, self._name) as waited:
            inputs = devices.move(padded)
            guarded = devices.waits_per_token(
                waited, lambda tokens: self._guarded(model, inputs, tokens=tokens, min_new_tokens=tokens)
            )
        more = len(guarded) - plain
        assert more <= self.waits, f"{self._name}: waits for the device {more} times more a token, at {set(guarded)}"

    def test_the_default_device_does_not_matter(self) -> None:
        """Under `torch.set_default_device`, every tensor is made on a stated device."""
        model, inputs = tiny(self.architectures[0])
        expected, guard = self._logits(model, inputs), self.guard(model, self.strategy)
        with devices.no_default(self._name):
            logits = _logits(_quiet(guard, inputs, _settings(self.tokens, {})))
        assert torch.equal(expected, logits), f"{self._name}: another default device changes logits"

    @property
    def _name(self) -> str:
        return strategy_name(self.strategy)

    def _models(self) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        return (tiny(name) for name in self.architectures)

    def _at(self, share: float) -> Any:
        """Return the strategy moved towards its neutral values by `share`; 1 is neutral itself."""
        neutral = self.neutral or getattr(self.strategy, "neutral", None)
        if not neutral:
            raise GuardError(f"{self._name}: name the neutral values, neutral = {{'alpha': 0.0}}.")
        current = {name: getattr(self.strategy, name) for name in neutral}
        return dataclasses.replace(
            self.strategy, **{name: current[name] + share * (neutral[name] - current[name]) for name in neutral}
        )

    def _guarded(
        self,
        model: nn.Module,
        inputs: Any,
        strategy: Any = None,
        *,
        executor: str = "auto",
        tokens: int = 0,
        **more: Any,
    ) -> Any:
        guard = self.guard(model, strategy or self.strategy, executor=executor)
        return _quiet(guard, inputs, _settings(tokens or self.tokens, more))

    def _logits(self, model: nn.Module, inputs: Any, **more: Any) -> Tensor:
        return _logits(self._guarded(model, inputs, **more))


def ragged(name: str, model: nn.Module) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Return three prompts of different lengths and images, singly and as one left-padded batch."""
    singles = [inputs_for(name, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    return singles, left_padded(singles)


def left_padded(singles: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return one batch of single-row inputs: token-aligned tensors padded on the left, pixels stacked."""
    length = max(inputs["input_ids"].shape[1] for inputs in singles)
    batch = {}
    for key in singles[0]:
        aligned = singles[0][key].shape[:2] == singles[0]["input_ids"].shape
        batch[key] = torch.cat([_pad(inputs[key], length) if aligned else inputs[key] for inputs in singles])
    return batch


def _pad(value: Tensor, length: int) -> Tensor:
    return torch.cat([value.new_zeros(1, length - value.shape[1], *value.shape[2:]), value], dim=1)


def _settings(tokens: int, more: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": list(FORBIDDEN)}
    return {**settings, "return_dict_in_generate": True, "output_logits": True, **more}


def _quiet(guard: Any, inputs: Any, settings: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return guard.generate(**inputs, **settings)


@functools.cache
def _count_plain_waits(name: str) -> int:
    """Return how often each token of plain generate waits for the device, in a padded batch."""
    model, _ = tiny(name)
    padded = ragged(name, model)[1]
    with devices.two(model, "plain generate") as waited:
        inputs = devices.move(padded)
        return len(devices.waits_per_token(waited, lambda tokens: _run(model, inputs, tokens, min_new_tokens=tokens)))


def _run(model: Any, inputs: Any, tokens: int, **more: Any) -> Any:
    return model.generate(**inputs, **_settings(tokens, more))


def _logits(output: Any) -> Tensor:
    return torch.stack(list(output.logits))


def _distance(left: Tensor, right: Tensor, *, floor: bool = False) -> float:
    """Return the largest difference over tokens that neither side demotes; with `floor`, one-sided demotion counts as 1."""
    left_plausible, right_plausible = left > -IMPLAUSIBLE, right > -IMPLAUSIBLE
    if floor and not torch.equal(left_plausible, right_plausible):
        return 1.0
    plausible = left_plausible & right_plausible
    return float((left - right)[plausible].abs().max()) if bool(plausible.any()) else 0.0


__all__ = ["StrategyContract", "Words", "left_padded", "ragged"]
