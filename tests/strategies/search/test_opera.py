"""Beam search on log softmax(z - weight phi), phi = max_j 1e-7 prod_{i >= j} scale A_ij, with rollback."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from against_twin import ARCHITECTURES
from gold import ROLLS_BACK, SUPPRESSED
from lvlm_guard_search import OPERA
from lvlm_guard_search.opera import over_trust
from twin import Twin
from versions import skip

from lvlm_guard import Guard, ModeRefused
from lvlm_guard.testing import SequenceContract, tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.tiny import inputs_for

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def ragged(architecture):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    return model, singles, left_padded(singles)


def generate(model, inputs, strategy, tokens=5, executor="auto", **settings):
    guard = Guard(model, Words(), [strategy], executor=executor)
    base = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    return guard.generate(**inputs, **(base | settings))


def naive_over_trust(attention, scale, window):
    """Column products with plain loops; `attention[i][j]` of one row."""
    tokens = len(attention)
    best, winner = -1.0, 0
    for column in range(max(tokens - window, 0), tokens):
        product = 1e-7
        for row in range(column, tokens):
            product *= scale * attention[row][column]
        if product > best:
            best, winner = product, column
    return best, winner


@pytest.mark.parametrize(("tokens", "window"), [(1, 9), (5, 9), (7, 3), (12, 12)])
def test_the_over_trust_score(tokens, window):
    attention = torch.rand(6, tokens, tokens, generator=torch.Generator().manual_seed(tokens)).tril()
    attention[0, -1, -1] = 0.0
    phi, winner = over_trust(attention, 4.0, window)
    for row in range(6):
        wanted = naive_over_trust(attention[row].double().tolist(), 4.0, window)
        assert float(phi[row]) == pytest.approx(wanted[0], rel=1e-4)
        assert int(winner[row]) == wanted[1]


def test_long_answers_do_not_overflow():
    phi, winner = over_trust(torch.full((1, 400, 400), 0.9).tril(), 50.0, 512)
    assert bool(phi.isfinite().all())
    assert int(winner) == 0


@dataclass
class Naive:
    """OPERA for one prompt: lists of tokens, the whole prompt run for each candidate, no cache anywhere."""

    model: object
    inputs: dict
    rules: OPERA
    ends: int | None = None
    returned: list = field(default_factory=list)
    known: dict = field(default_factory=dict)

    def look(self, tokens):
        """Next-token logits, penalty and winner of the newest token."""
        if tokens not in self.known:
            twin = Twin(self.model)
            logits = twin.next(self.inputs, tokens)
            logits[SUPPRESSED] = -math.inf
            self.known[tokens] = (logits, *(self.penalty(twin, len(tokens)) if tokens else (0.0, 0)))
        return self.known[tokens]

    def penalty(self, twin, tokens):
        maps = twin.seen[twin.depth - 1][0].amax(0)
        maps = maps / maps.sum(-1, keepdim=True)
        own = maps[-tokens:, -tokens:].double().tolist()
        phi, winner = naive_over_trust(own, self.rules.scale, self.rules.window)
        return -float(maps[-1][twin.image].sum()) if tokens <= self.rules.opening else phi, winner

    def run(self, limit):
        rules = self.rules
        states, banned, answers = {0: [((), (), 0.0)]}, {}, []
        step, returns = 0, Counter()
        while True:
            options = []
            for beam, (tokens, _, score) in enumerate(states[step]):
                logits = self.look(tokens)[0].clone()
                for token in banned.get((step, beam), ()):
                    logits[token] = -math.inf
                count = max(rules.beams, rules.candidates) if step == 0 else rules.candidates
                values, candidates = logits.topk(count)
                looked = [self.look((*tokens, int(token)))[1:] for token in candidates]
                values = values - rules.weight * torch.tensor([phi for phi, _ in looked])
                for value, token, (_, winner) in zip(values.log_softmax(0), candidates, looked, strict=True):
                    options.append((score + float(value), beam, int(token), winner))
            options.sort(key=lambda option: -option[0])
            over = step + 1 == limit
            for score, beam, token, _ in options[: rules.beams]:
                if over or token == self.ends:
                    answers.append((score / (step + 1), (*states[step][beam][0], token)))
            if over:
                break
            going = [option for option in options if option[2] != self.ends][: rules.beams]
            following = []
            for score, beam, token, winner in going:
                tokens, winners, _ = states[step][beam]
                following.append(((*tokens, token), (*winners, winner), score))
                banned.setdefault((step, beam), set()).add(token)
            step += 1
            states[step] = following
            best = sorted((score for score, _ in answers), reverse=True)[: rules.beams]
            if len(best) == rules.beams and following[0][2] / step <= best[-1]:
                break
            place = self.place(following, step, returns)
            if place is not None:
                returns[place] += 1
                self.returned.append((step, place))
                banned = {key: tokens for key, tokens in banned.items() if key[0] <= place}
                answers = [one for one in answers if len(one[1]) <= place]
                step = place
        return max(answers)[1]

    def place(self, beams, step, returns):
        rules = self.rules
        windows = [winners[-rules.window :] for _, winners, _ in beams]
        token = Counter(Counter(one).most_common(1)[0][0] for one in windows).most_common(1)[0][0]
        if token < rules.opening or any(one.count(token) < rules.threshold for one in windows):
            return None
        places = [one for one in (token + 1, token) if rules.opening <= one < step]
        return next((one for one in places if returns[one] < rules.rollbacks), None)


SETTINGS = {
    "penalty": OPERA(beams=3, candidates=2, weight=2.0, opening=2, threshold=99, scale=2000.0),
    "rollback": OPERA(beams=2, candidates=3, weight=1e6, opening=1, threshold=1, rollbacks=2, scale=30.0),
    "narrow": OPERA(beams=3, candidates=1, weight=1e6, opening=0, threshold=2, rollbacks=1, scale=60.0, window=3),
}


PAIRS = [(one, kind) for one in ARCHITECTURES for kind in SETTINGS if kind != "rollback" or one == "llava"]


@pytest.mark.parametrize(("architecture", "kind"), PAIRS)
def test_opera_is_its_twin(architecture, kind):
    if not ROLLS_BACK and architecture == "gemma3" and kind != "penalty":
        skip("sliding windows that forget no tokens")
    model, singles, batch = ragged(architecture)
    got = generate(model, batch, SETTINGS[kind], tokens=5)[:, batch["input_ids"].shape[1] :]
    twins = [Naive(model, one, SETTINGS[kind]) for one in singles]
    assert got.tolist() == [list(twin.run(5)) for twin in twins]
    returned = [twin.returned for twin in twins]
    assert any(returned) == (kind != "penalty")
    phi = [
        SETTINGS[kind].weight * abs(look[1]) for twin in twins for tokens, look in twin.known.items() if len(tokens) > 2
    ]
    print(f"{architecture} {kind}: penalties up to {max(phi):.3g}, returns {list(map(len, returned))}")
    assert max(phi) > 0.1
    plain = generate(model, batch, OPERA(weight=0.0), tokens=5, num_beams=SETTINGS[kind].beams)
    assert not torch.equal(got, plain[:, batch["input_ids"].shape[1] :])


def test_with_every_token_a_candidate_and_no_weight_opera_is_plain_beam_search():
    model, _, batch = ragged("llava")
    for ends in ({}, {"eos_token_id": [73, 27, 17, 30], "pad_token_id": 5}):
        wide = OPERA(weight=1e-9, beams=3, candidates=121, opening=0, rollbacks=0)
        got = generate(model, batch, wide, tokens=3, **ends)
        assert torch.equal(got, generate(model, batch, OPERA(weight=0.0), tokens=3, num_beams=3, **ends))


def test_opera_needs_a_cache_that_forgets():
    model, inputs = tiny("llava")
    with pytest.raises(ModeRefused, match="drop use_cache"):
        generate(model, inputs, OPERA(), use_cache=False)
    assert "forward" not in vars(model)


class TestOPERA(SequenceContract):
    strategy = OPERA(beams=3, candidates=2, weight=2.0, opening=2, threshold=99, scale=2000.0)
    baseline: ClassVar = {"num_beams": 3}


class TestOPERAGoingBack(SequenceContract):
    strategy = OPERA(beams=2, candidates=3, weight=1e6, opening=1, threshold=1, rollbacks=2, scale=30.0)
    baseline: ClassVar = {"num_beams": 2}
    architectures = ("llava",)
