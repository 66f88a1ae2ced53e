"""Ways to generate side by side: whose turn it is, whom a token is compared with, and what becomes of one that fails."""

import pytest
import torch

NEW_TOKENS = 4


@pytest.fixture(scope="module")
def lockstep(script):
    return script("lockstep")


@pytest.fixture
def race(lockstep):
    """A function from ways to generate, by name, to a race between them."""

    def make(**ways):
        prompt = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}
        variants = [lockstep.Variant(name, way, prompt) for name, way in ways.items()]
        return lockstep.Lockstep(variants, NEW_TOKENS, torch.device("cpu"))

    return make


def generating(name, heard, *, fails_at=None):
    """A stand-in for generate that notes every token."""

    def generate(input_ids, max_new_tokens, stopping_criteria, **_):
        for token in range(max_new_tokens):
            if token == fails_at:
                raise RuntimeError("out of luck")
            heard.append((token, name))
            input_ids = torch.cat([input_ids, torch.ones(1, 1, dtype=torch.long)], dim=1)
            assert not bool(stopping_criteria(input_ids, None).any())
        heard.append((max_new_tokens, name))
        return input_ids

    return generate


def test_every_way_has_its_token_before_any_has_the_next(race, lockstep):
    heard = []
    running = race(plain=generating("plain", heard), other=generating("other", heard))
    running.run(0, lockstep.Budget(60))
    assert [token for token, _ in heard] == [token for token in range(NEW_TOKENS + 1) for _ in range(2)]
    turns = [{name for _, name in heard[start : start + 2]} for start in range(0, len(heard), 2)]
    assert turns == [{"plain", "other"}] * (NEW_TOKENS + 1)
    row = running.row(running.variants[1])
    assert row["rounds"] == 1
    assert row["status"] == "ok"
    assert row["decode_ms_p50"] > 0


def test_a_token_is_compared_with_the_one_beside_it(race, lockstep):
    running = race(plain=None, other=None)
    for name, steps in {"plain": (1.0, 10.0, 2.0), "other": (3.0, 11.0, 2.0)}.items():
        running.timings[name] = {0: lockstep.Timing(5.0, 1.0, 1.0, 9.0, steps)}
    assert running.ratios("decode", running.variants[1]) == [1.1]
    assert running.ratios("prefill", running.variants[1]) == [1.0]
    assert running.row(running.variants[1])["ratio_interval"] == [1.1, 1.1]


def test_one_that_fails_is_named_and_the_others_go_on(race, lockstep):
    heard = []
    running = race(plain=generating("plain", heard), broken=generating("broken", heard, fails_at=2))
    for number in range(2):
        running.run(number, lockstep.Budget(60))
    plain, broken = map(running.row, running.variants)
    assert plain["rounds"] == 2
    assert plain["status"] == "ok"
    assert broken["rounds"] == 0
    assert broken["status"] == "failed: RuntimeError: out of luck"
    assert heard.count((1, "broken")) == 1


def test_models_that_share_weights_share_no_hooks(lockstep):
    model = torch.nn.Linear(3, 2)
    other = lockstep.sharing(model)
    model.register_forward_hook(lambda *_: torch.zeros(2))
    assert other.weight is model.weight
    assert other.bias is model.bias
    assert bool(other(torch.ones(3)).any())
