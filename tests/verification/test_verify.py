"""Verification is green on a sound model and red on every planted fault."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import saboteurs
import torch
from pydantic import Field
from saved_models import save_model
from versions import KEPT, skip

from lvlm_guard import Generation, Guard, InputError, NonFiniteLogits, StackError, Term, hookimpl, loading
from lvlm_guard.cache_names import find_cache
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.testing import devices
from lvlm_guard.testing.zoo import mechanisms
from lvlm_guard.verification import stacks as default_set
from lvlm_guard.verification import verify, verifying
from lvlm_guard.verification.checks import MEANINGS
from lvlm_guard.verification.distances import tolerance_of

STACKS = ("noise", "removal", "longer", "attention", "hidden", "readouts", "vision")


@pytest.fixture(autouse=True)
def few_timings(monkeypatch):
    monkeypatch.setattr(verifying, "ROUNDS", 1)
    monkeypatch.setattr(verifying, "TIMED_TOKENS", 3)


def results(verification):
    return {(check.stack, check.check): check for check in verification.checks}


def statuses(verification):
    return {(check.stack, check.check): check.status for check in verification.checks}


def failures(verification):
    return {(check.stack, check.check) for check in verification.select("failed")}


def verify_default(guard, monkeypatch, *names):
    """Verify some of the default stacks."""
    build = default_set.default_stacks
    monkeypatch.setattr(
        verifying, "default_stacks", lambda model: [stack for stack in build(model) if stack.name in names]
    )
    return verify(guard)


def test_a_sound_model_passes_every_check_and_every_check_has_power(guard):
    checks = []
    verification = verify(guard, watch=lambda check, left: checks.append((check, left)))
    others = {check.title: check.says for check in verification.checks if check.status != "pass"}
    if list(others) == ["vision: effect"] and KEPT in others["vision: effect"]:
        skip("a tower it keeps layers of, so that edits of it are refused")
    assert others == {}
    assert [check for check, _ in checks] == list(verification.checks)
    assert [left for _, left in checks][-1] == 0
    assert {check.check for check in verification.checks} == set(MEANINGS)
    found = results(verification)
    for stack in STACKS:
        assert found[stack, "effect"].figure > 500 * found[stack, "recompute"].tolerance
        assert found[stack, "decode cost"].figure > 0
    assert verification.model.name == "tiny-llava"
    assert "52 pass" in verification.summarize()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "mllama", "idefics3"])
def test_models_of_other_types_pass_with_their_own_processors(name, tmp_path):
    folder = save_model(name, tmp_path / name)
    verification = verify(Guard(*loading.load(str(folder), "cpu"), None))
    left = {title for title, status in statuses(verification).items() if status != "pass"}
    assert left == ({(stack, "executors") for stack in STACKS[:3]} if name == "mllama" else set())


def test_stacks_of_the_user_are_verified_by_their_names(guard):
    verification = verify(guard, {"mine": "vcd+vsv", "late": "revise"})
    found = results(verification)
    assert {check for stack, check in found if stack == "mine"} >= {
        "effect",
        "neutral",
        "executors",
        "recompute",
        "rows",
    }
    assert {found["mine", check].status for stack, check in found if stack == "mine"} == {"pass"}
    assert found["mine", "neutral"].figure == 0
    assert [check for stack, check in found if stack == "late"] == ["effect"]
    assert found["late", "effect"].status == "unproven"
    assert "finish" in found["late", "effect"].says
    assert verification.passed


class Drifting(torch.nn.Module):
    """A head that says something a little different in every call."""

    def __init__(self, head):
        super().__init__()
        self.head, self.calls = head, 0

    def forward(self, hidden):
        self.calls += 1
        return self.head(hidden) * (1 + 1e-3 * self.calls)


class Crowd(torch.nn.Module):
    """A head whose rows lean to the mean of their batch."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        logits = self.head(hidden)
        return logits + 0.1 * (logits.mean(0, keepdim=True) - logits)


class Forgetful(torch.nn.Module):
    """A head that answers single tokens in another way, as a faulty cache would."""

    def __init__(self, head):
        super().__init__()
        self.head, self.whole = head, False

    def forward(self, hidden):
        return self.head(hidden) * (1.0 if self.whole else 1.05)


@pytest.mark.slow
def test_a_model_with_a_state_of_its_own_is_red(guard):
    guard.model.lm_head = Drifting(guard.model.lm_head)
    failed = failures(verify(guard, {"vcd": "vcd"}))
    assert {("", "repeats"), ("", "neutral"), ("vcd", "restored")} <= failed


def test_a_model_whose_rows_depend_on_their_batch_is_red_and_the_stack_is_not_blamed(guard):
    guard.model.lm_head = Crowd(guard.model.lm_head)
    verification = verify(guard, {"vsv": "vsv"})
    assert failures(verification) == {("", "rows")}
    assert results(verification)["", "rows"].figure > 100 * tolerance_of(torch.float32)
    assert "depend on their batch" in results(verification)["vsv", "rows"].says
    assert results(verification)["vsv", "rows"].status == "unproven"


@pytest.mark.slow
def test_a_model_that_differs_without_a_cache_is_red_and_recompute_keeps_one(guard, monkeypatch):
    head = guard.model.lm_head = Forgetful(guard.model.lm_head)
    forward = guard.model.model.forward

    def watched(*args, **kwargs):
        head.whole = find_cache(kwargs) is None or kwargs.get("use_cache") is False
        return forward(*args, **kwargs)

    guard.model.model.forward = watched
    verification = verify_default(guard, monkeypatch, "noise")
    assert results(verification)["", "cache"].status == "failed"
    assert "with a cache" in results(verification)["noise", "recompute"].says


@dataclass(frozen=True)
class HeavierLayers(mechanisms.EarlyLayers):
    """Adds what early layers say a little too strongly."""

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        return [dataclasses.replace(mix, weight=mix.weight * 1.004) for mix in super().terms(gen)]


@pytest.mark.slow
def test_a_contrast_that_is_a_little_off_is_red(guard, monkeypatch):
    assert verify_default(guard, monkeypatch, "noise").passed
    monkeypatch.setattr(mechanisms, "contrast", lambda main, branch: 2.502 * main - 1.502 * branch)
    verification = verify(guard)
    assert failures(verification) == {("noise", "recompute")}
    assert "noise: recompute failed" in verification.summarize()


@pytest.mark.slow
def test_a_readout_that_is_a_little_off_is_red(guard, monkeypatch):
    monkeypatch.setattr(mechanisms, "EarlyLayers", HeavierLayers)
    assert failures(verify_default(guard, monkeypatch, "readouts")) == {("readouts", "recompute")}


@pytest.mark.slow
def test_hidden_edits_are_compared_with_hooks(guard, monkeypatch):
    monkeypatch.setattr(
        default_set,
        "_halved_by_hand",
        lambda inner: (
            lambda model, _, inputs, path, use_cache: default_set.run_along_plain(
                model, inputs, path, use_cache=use_cache
            )[:, 0]
        ),
    )
    assert failures(verify_default(guard, monkeypatch, "hidden")) == {("hidden", "recompute")}


class Forbidding(torch.nn.Module):
    """A head that forbids tokens by the least number there is, as some models forbid those of their images."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        logits = self.head(hidden)
        logits[..., 5:20] = torch.finfo(logits.dtype).min
        return logits


@pytest.mark.slow
def test_tokens_that_the_model_forbids_stay_out_of_the_comparison(guard, monkeypatch):
    guard.model.lm_head = Forbidding(guard.model.lm_head)
    verification = verify_default(guard, monkeypatch, "noise", "removal")
    assert verification.passed, verification.summarize()


class Placeholding(torch.nn.Module):
    """A head that likes the placeholder of images best."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        logits = self.head(hidden)
        return torch.cat([logits[..., :100], logits.amax(-1, keepdim=True) + 1, logits[..., 101:]], dim=-1)


@pytest.mark.slow
def test_no_token_of_an_image_is_chosen(guard, monkeypatch):
    guard.model.lm_head = Placeholding(guard.model.lm_head)
    verification = verify_default(guard, monkeypatch, "attention", "noise")
    assert verification.passed, verification.summarize()
    assert results(verification)["attention", "recompute"].status == "pass"


@pytest.mark.slow
def test_edits_of_the_tower_are_compared_with_hooks(guard, monkeypatch):
    monkeypatch.setattr(default_set.reference, "tower_layers", lambda model: [])
    assert failures(verify_default(guard, monkeypatch, "vision")) == {("vision", "recompute")}


@pytest.mark.slow
def test_a_model_over_two_devices_is_verified_as_on_one(guard, monkeypatch):
    with devices.two(guard.model, "verify"):
        verification = verify_default(guard, monkeypatch, "noise", "readouts")
    assert verification.passed
    assert verification.select("unproven") == []
    assert verification.model.device == devices.KIND


@pytest.mark.slow
def test_an_edit_that_should_change_nothing_and_does_is_red(guard, monkeypatch):
    monkeypatch.setattr(mechanisms, "unchanged", lambda scores, view: scores + 0.01 * scores.abs())
    assert failures(verify_default(guard, monkeypatch, "attention", "hidden")) == {
        ("attention", "neutral"), ("hidden", "neutral"),
    }  # fmt: skip


@dataclass(frozen=True)
class Batchwise(saboteurs.BatchWideMean):
    """Its weight depends on the whole batch."""

    name: ClassVar[str] = "batchwise"


@dataclass(frozen=True)
class Unseeded(saboteurs.UnseededDraw):
    """Draws another noise in every call."""

    name: ClassVar[str] = "unseeded"


@dataclass(frozen=True)
class Nothing(saboteurs.NoOp):
    """Runs a branch and does nothing with it."""

    name: ClassVar[str] = "nothing"


@dataclass(frozen=True)
class Hooking(saboteurs.Honest):
    """Leaves a hook on the model in its first call."""

    name: ClassVar[str] = "hooking"
    model: ClassVar[Any] = None

    @hookimpl
    def start(self, gen: Generation) -> None:
        if type(self).model is not None:
            type(self).model.register_forward_hook(lambda *_: None)
            type(self).model = None


@dataclass(frozen=True)
class Nudging(saboteurs.Honest):
    """Changes a weight by next to nothing."""

    name: ClassVar[str] = "nudging"
    model: ClassVar[Any] = None

    @hookimpl
    def start(self, gen: Generation) -> None:
        next(self.model.parameters()).data.mul_(1 + 1e-6)


@dataclass(frozen=True)
class Breaking(saboteurs.Honest):
    """Raises what strategies should not raise."""

    name: ClassVar[str] = "breaking"
    error: ClassVar[Exception] = IndexError("no such thing")

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        raise self.error


@dataclass(frozen=True)
class Slow(saboteurs.Honest):
    """Sleeps before every token."""

    name: ClassVar[str] = "slow"
    pause: Annotated[float, Field(ge=0)] = 0.05

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        time.sleep(self.pause)
        return super().terms(gen)


@pytest.mark.parametrize(
    ("strategy", "failed"),
    [
        (saboteurs.Honest(), set()),
        (Batchwise(), {"rows"}),
        (Unseeded(), {"executors", "recompute", "rows"}),
        (Nothing(), {"effect"}),
        (Breaking(), {"effect"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_faulty_strategy_is_red(guard, strategy, failed):
    verification = verify(guard, {"it": [strategy]})
    assert failures(verification) == {("it", check) for check in failed}


def test_a_hook_that_is_left_is_red_and_only_once(guard):
    Hooking.model = guard.model
    verification = verify(guard, {"it": [Hooking()], "vsv": "vsv"})
    assert failures(verification) == {("it", "restored")}
    assert "hooks" in results(verification)["it", "restored"].says


def test_a_weight_that_is_nudged_is_red(guard):
    Nudging.model = guard.model
    assert ("", "restored") in failures(verify(guard, {"it": [Nudging()]}))


def test_what_is_left_after_an_exception_is_red(guard, monkeypatch):
    class Untidy(Guard):
        def generate(self, *args, **kwargs):
            try:
                return super().generate(*args, **kwargs)
            except Exception:
                self.model.forward = self.model.forward
                raise

    verification = verify(Untidy(guard.model, guard.processor, None), {"vsv": "vsv"})
    assert failures(verification) == {("vsv", "restored")}
    assert "after an exception" in results(verification)["vsv", "restored"].says


def test_a_guard_that_is_not_neutral_with_nothing_to_do_is_red(guard):
    class Loud(Guard):
        def generate(self, *args, **kwargs):
            output = super().generate(*args, **kwargs)
            output.logits = tuple(logits + 1e-6 for logits in output.logits)
            return output

    verification = verify(Loud(guard.model, guard.processor, None), {"vsv": "vsv"})
    assert failures(verification) == {("", "neutral"), ("vsv", "neutral")}


@pytest.mark.slow
def test_a_branch_that_reads_the_cache_of_main_is_red(guard, monkeypatch):
    feed = BranchRun.feed

    def stale(self, run, generated, new, keep, *, first=False):
        logits = feed(self, run, generated, new, keep, first=first)
        if first and self.cache is not None:
            for layer in self.cache.layers:
                layer.keys = layer.keys * 1.01
        return logits

    monkeypatch.setattr(BranchRun, "feed", stale)
    assert ("noise", "recompute") in failures(verify_default(guard, monkeypatch, "noise"))


def test_a_crash_names_the_error_and_plain_generate_is_asked_first(guard):
    check = results(verify(guard, {"it": [Breaking()]}))["it", "effect"]
    assert check.status == "failed"
    assert "IndexError: no such thing" in check.says


def test_refusals_and_broken_logits_are_told_apart_from_crashes(guard, monkeypatch):
    monkeypatch.setattr(Breaking, "error", InputError("not here"))
    verification = verify(guard, {"it": [Breaking()]})
    assert results(verification)["it", "effect"].status == "refused"
    assert verification.passed
    assert "1 refused (it: effect refused)" in verification.summarize()
    monkeypatch.setattr(Breaking, "error", NonFiniteLogits("NaN"))
    assert results(verify(guard, {"it": [Breaking()]}))["it", "effect"].status == "failed"


@pytest.mark.slow
def test_time_is_seen(guard):
    found = results(verify(guard, {"slow": [Slow()], "quick": [saboteurs.Honest()]}))
    assert found["slow", "decode cost"].figure > 2 * found["quick", "decode cost"].figure


def test_what_cannot_be_asked_is_said_before_anything_runs(guard):
    with pytest.raises(StackError, match="vcd"):
        verify(guard, {"mine": "vcdd"})
    guard.model.lm_head = torch.nn.Linear(3, 3)
    with pytest.raises(InputError, match="Plain generate cannot run this"):
        verify(guard)


@pytest.mark.slow
def test_stacks_that_leave_one_token_are_measured_by_the_spread_of_plain_logits(guard):
    verification = verify(guard, {"strict": {"stack": [{"name": "vcd", "params": {"beta": 1.0}}]}})
    assert verification.passed, verification.summarize()
    assert results(verification)["strict", "rows"].figure < 1e-4


@pytest.mark.slow
def test_half_precision_has_a_wider_limit_and_the_same_effects(guard):
    guard.model.to(torch.bfloat16)
    verification = verify(guard, {"vcd": "vcd"})
    assert verification.passed
    found = results(verification)
    assert found["vcd", "recompute"].tolerance >= tolerance_of(torch.bfloat16) > 100 * tolerance_of(torch.float32)
    assert found["vcd", "effect"].figure > found["vcd", "effect"].tolerance
    assert dataclasses.asdict(verification.model)["dtype"] == "bfloat16"
