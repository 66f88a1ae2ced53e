"""The meaning of a stack: a sum on top of main, the strictest plausibility, intersected restrictions, added biases."""

import math

import pytest
import torch

from lvlm_guard import Bias, Contrast, InputError, Mix, Plausible, Restrict
from lvlm_guard.arithmetic.fusion import ForwardStatistics, combine
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.generation import Generation, Services
from lvlm_guard.strategy.prompt import Prompt

VOCABULARY = 11


@pytest.fixture
def gen():
    draw = torch.Generator().manual_seed(0)
    main, one, two = (torch.randn(2, 3, VOCABULARY, generator=draw) * 3 for _ in range(3))
    ids = torch.ones(2, 4, dtype=torch.long)
    generation = Generation(Prompt({}, ids, ids, ids.bool()), services=Services(measure=ForwardStatistics))
    generation.forward = Forward(main, {"one": one, "two": two}, first_position=5)
    return generation


def test_mixes_and_contrasts_add_up_on_top_of_main(gen):
    main, one, two = gen.logits(), gen.logits("one"), gen.logits("two")
    got = combine(gen, [Contrast("one", 0.5), Mix("two", -0.25), Mix("main", 1.0), Contrast("one", 1.0)])
    assert torch.allclose(got, 3.5 * main - 1.5 * one - 0.25 * two, atol=1e-5)


def test_the_order_of_terms_never_matters(gen):
    keep = torch.tensor([True] * 8 + [False] * 3)
    terms = [
        Contrast("one", 0.5),
        Plausible(0.01),
        Mix("two", 1.0),
        Restrict(keep),
        Bias(torch.arange(VOCABULARY) / 7),
        Plausible(0.2),
    ]
    one, other = combine(gen, terms), combine(gen, terms[::-1])
    assert torch.allclose(one, other, atol=1e-5)


def test_the_strictest_plausibility_wins(gen):
    assert torch.equal(combine(gen, [Plausible(0.01), Plausible(0.3)]), combine(gen, [Plausible(0.3)]))
    assert not torch.equal(combine(gen, [Plausible(0.01)]), combine(gen, [Plausible(0.3)]))


def test_restrictions_intersect_and_biases_add(gen):
    first, second = torch.arange(VOCABULARY) < 7, torch.arange(VOCABULARY) > 3
    got = combine(
        gen, [Restrict(first), Restrict(second), Bias(torch.ones(VOCABULARY)), Bias(torch.ones(2, VOCABULARY))]
    )
    assert (got[..., 4:7] == gen.logits()[..., 4:7] + 2).all()
    assert (got[..., :4] == -math.inf).all()
    assert (got[..., 7:] == -math.inf).all()


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1), (1, 3)])
def test_weights_may_differ_by_row_and_position(gen, shape):
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    got = combine(gen, [Mix("one", weight)])
    column = weight[:, None, None] if len(shape) == 1 else weight[..., None]
    assert torch.allclose(got, gen.logits() + column * gen.logits("one"), atol=1e-6)


def test_a_weight_may_be_a_function_of_statistics(gen):
    got = combine(gen, [Contrast("one", lambda now: now.entropy("main") * now.divergence("main", "one"))])
    p, q = gen.logits().softmax(-1), gen.logits("one").softmax(-1)
    m = (p + q) / 2
    weight = -(p * p.log()).sum(-1) * ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    weight = weight[..., None]
    assert torch.allclose(got, (1 + weight) * gen.logits() - weight * gen.logits("one"), atol=1e-4)
    best = combine(gen, [Mix("one", lambda now: (now.max_probability("one") > 2).float())])
    assert torch.allclose(best, gen.logits())


@pytest.mark.parametrize("terms", [[], [Mix("one", 0.0)], [Contrast("one", 0.0), Plausible(0.0)]])
def test_neutral_terms_leave_main_alone(gen, terms):
    assert combine(gen, terms) is None


def test_positions_count_generated_tokens(gen):
    assert gen.step == 5
    assert gen.positions.tolist() == [5, 6, 7]


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_plausibility_is_a_share(beta):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        Plausible(beta)


def test_rows_follow_beams_and_rejected_candidates(gen):
    gen.rows.put("memory", torch.tensor([[1.0], [2.0]]))
    gen.rows.append("seen", torch.tensor([[1, 2], [3, 4]]))
    gen.rows.append("seen", torch.tensor([[5], [6]]))
    gen.rows.select(torch.tensor([1, 1]))
    gen.rows.crop(2)
    assert gen.rows["memory"].tolist() == [[2.0], [2.0]]
    assert gen.rows["seen"].tolist() == [[3, 4], [3, 4]]
    assert set(gen.rows) == {"memory", "seen"}


def test_logits_are_known_only_during_a_forward(gen):
    gen.forward = None
    with pytest.raises(InputError, match="no logits yet"):
        gen.logits()


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda gen: gen.prompt_states(), "from start on"),
        (lambda gen: gen.ask(["is it red?"], 0), "only in finish"),
        (lambda gen: gen.output_ids, "only in finish"),
        (lambda gen: gen.combined, "only in observe"),
    ],
)
def test_what_is_not_available_yet_says_when_it_is(gen, read, message):
    with pytest.raises(InputError, match=message):
        read(gen)


def test_rows_per_request_multiply(gen):
    gen.multiply_rows(3)
    gen.multiply_rows(2)
    assert gen.prompt.rows_per_request == 6
