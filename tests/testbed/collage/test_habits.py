"""The habits are what a language model expects, measured as the formulas say, and the world keeps to their rules."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lvlm_guard.testbed.collage.world import believing, measuring
from lvlm_guard.testbed.collage.world.habits import AXES, habits, read_habits
from lvlm_guard.testbed.collage.world.measuring import Measured
from lvlm_guard.testbed.collage.world.text_scorer import TextScorer
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, NUMBERS, SIZES

TEMPLATE = "{% for message in messages %}user {{ message.content }} {% endfor %}assistant"
TEXTS = "user assistant Describe the picture . a an one two red blue hot dog cat shows and is left right above below"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: at for at, word in enumerate(["<unk>", *TEXTS.split()])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|(?=\.)"), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def scorer(model, tokenizer) -> TextScorer:
    return TextScorer(model, tokenizer, measuring.REQUEST)


def recompute(model, tokenizer, text: str, continuation: str) -> float:
    """The log-probability of a continuation by one forward over everything."""
    start = tokenizer(f"user {measuring.REQUEST} assistant {text}", add_special_tokens=False)["input_ids"]
    rest = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logs = model(torch.tensor([start + rest])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(start) + at - 1, token]) for at, token in enumerate(rest))


def test_continuations_are_scored_as_from_scratch(model, tokenizer, scorer) -> None:
    ends = [" dog", " a dog", " a hot dog", " a cat", " an cat", " a hot"]
    expected = [recompute(model, tokenizer, "the picture shows", end) for end in ends]
    scored = scorer.score("the picture shows", ends)
    assert scored == pytest.approx(expected, abs=1e-4)
    assert scored.std() > 0.1, "nothing to tell apart"


def test_the_next_word_after_middles_is_scored_as_from_scratch(model, tokenizer, scorer) -> None:
    middles, words = [" a dog . the cat is", " an cat . the cat is", " a hot dog . the cat is"], [" left", " above"]
    text = "the picture shows a cat and"
    expected = [[recompute(model, tokenizer, text + middle, word) for word in words] for middle in middles]
    scored = scorer.score_next(text, middles, words)
    assert scored == pytest.approx(np.asarray(expected), abs=1e-4)
    assert scored.std() > 0.1


def measured() -> Measured:
    rng = np.random.default_rng(0)
    count = len(NAMES)
    together = rng.normal(size=(count, count))
    order = [rng.normal(size=(count, count)) for _ in AXES]
    for table in (together, *order):
        np.fill_diagonal(table, np.nan)
    return Measured(
        (together + together.T) / 2,
        rng.normal(size=count),
        rng.normal(size=(count, len(COLOURS))),
        rng.normal(size=(count, len(NUMBERS))),
        rng.normal(size=(count, len(SIZES))),
        ((order[0] - order[0].T) / 2, (order[1] - order[1].T) / 2),
    )


def test_chosen_habits_are_the_strongest() -> None:
    of = measured()
    chosen = read_habits(believing.choose_habits(of))
    check_rules(chosen)
    dog = NAMES.index("dog")
    assert chosen.colour["dog"] == COLOURS[int(of.colours[dog].argmax())]
    assert chosen.number["dog"] == int(of.numbers[dog].argmax()) + 1
    assert min(of.readiness[NAMES.index(name)] for name in chosen.popular) > np.median(of.readiness)
    places = {name: at for at, name in enumerate(NAMES)}
    for order in chosen.orders:
        axis = list(AXES).index(order.side)
        assert of.orders[axis][places[order.first], places[order.second]] > 0
    strengths = [of.together[places[one], places[other]] for one, other in chosen.partner.items()]
    assert np.mean(strengths) > 0.9, "chance pairs have a mean of 0"


def test_the_habits_that_come_with_the_package_keep_the_rules() -> None:
    check_rules(habits())
    assert Counter(habits().size.values()).keys() == set(SIZES)
    assert set(habits().colour.values()) == set(COLOURS)
    assert set(habits().number.values()) == {1, 2, 3, 4}


def check_rules(known) -> None:
    assert set(known.partner) == set(NAMES)
    assert all(known.partner[known.partner[name]] == name != known.partner[name] for name in NAMES)
    assert len(known.popular) == len(NAMES) // 3
    assert set(known.colour) == set(known.number) == set(known.size) == set(NAMES)
    taken = Counter((name, order.side) for order in known.orders for name in (order.first, order.second))
    assert max(taken.values()) <= believing.MOST_ORDERS
    assert {name for name, _ in taken} == set(NAMES)
    assert all(known.partner[order.first] != order.second for order in known.orders)
    pairs = [(order.side, *sorted((order.first, order.second))) for order in known.orders]
    assert len(pairs) == len(set(pairs))
    first = known.orders[0]
    assert known.find_order(first.second, first.first, first.side) == first
    other = next(name for name in NAMES if (first.side, *sorted((first.first, name))) not in pairs)
    assert known.find_order(first.first, other, first.side) is None


def test_measures_take_out_what_things_and_values_have_of_their_own() -> None:
    table = np.random.default_rng(1).normal(size=(5, 4))
    shifted = table + np.arange(5)[:, None] * 3 + np.arange(4)[None] * 2
    assert measuring._centred(shifted) == pytest.approx(measuring._centred(table))
    assert abs(measuring._centred(table)).max() > 0.1


class Counting:
    """Stands in for a scorer: what it says follows from the texts alone."""

    def score(self, text: str, ends: list[str]) -> np.ndarray:
        return np.asarray([float(text.count("dog") * ("cat" in end) - len(end) / 50) for end in ends])

    def score_next(self, text: str, middles: list[str], words: list[str]) -> np.ndarray:
        is_dog = "shows a dog" in text
        return np.asarray([[float(is_dog and word == " above") for word in words] for _ in middles])


def test_what_is_expected_together_and_above_is_found() -> None:
    of = measuring.measure_all(Counting())
    dog, cat = NAMES.index("dog"), NAMES.index("cat")
    assert np.nanargmax(of.together[dog]) == cat
    assert of.together == pytest.approx(of.together.T, nan_ok=True)
    left, above = of.orders
    assert np.nanmin(above[dog]) == 0.5 == -np.nanmax(above[cat, dog])
    assert not np.nan_to_num(left).any()
    assert of.colours.shape == (len(NAMES), len(COLOURS))
    assert of.numbers.shape == (len(NAMES), len(NUMBERS))
    assert of.sizes.shape == (len(NAMES), len(SIZES))
