"""The adapters over stand-ins for the harnesses: what is answered, in which order, and what it is said to have cost."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from lvlm_guard import Guard, ModeRefused, ProcessorNeeded, Refused, Stack
from lvlm_guard.harness.answering import Answerer, batches
from lvlm_guard.harness.asked import Asked

SETTINGS = {"max_new_tokens": 44, "do_sample": False}
STRONG = Stack.of({"name": "vcd", "params": {"alpha": 3.0}})


def chat(picture, text):
    return [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": text}]}]


def say(document):
    picture, question, _ = document
    return chat(picture, question)


@pytest.fixture(scope="module")
def alone(speaking, asked):
    """Answers one by one, plain and guarded."""
    guards = {"plain": Guard(*speaking, []), "guarded": Guard(*speaking, STRONG)}
    return {
        name: [guard.chat(chat(picture, text), **SETTINGS) for picture, text, _ in asked]
        for name, guard in guards.items()
    }


@pytest.fixture
def requests(asked):
    """Documents by task, and a function from settings to requests as lmms-eval makes them."""
    documents = {"drawn": {"test": asked}}

    def made(given):
        arguments = [("", say, given, number, "drawn", "test") for number in range(len(asked))]
        return [SimpleNamespace(args=one) for one in arguments]

    return documents, made


def test_batches_hold_equal_settings_and_either_pictures_or_none():
    kinds = [("a", 1), ("b", 1), ("a", 0), ("a", 1), ("a", 1)]
    asked = [
        Asked(chat("p", "?") if shown else [{"role": "user", "content": "?"}], {"x": name}) for name, shown in kinds
    ]
    assert list(batches(asked, 2)) == [[0, 3], [4], [1], [2]]


def test_answers_in_batches_are_those_given_alone_and_in_their_order(speaking, asked, alone):
    conversations = [Asked(chat(picture, text), SETTINGS) for picture, text, _ in asked]
    answerer = Answerer(Guard(*speaking, STRONG), rows=4)
    said = [one.text for one in answerer.answer(conversations)]
    assert said == alone["guarded"]
    assert said != alone["plain"]
    assert (answerer.tally.calls, answerer.tally.requests) == (3, len(asked))


def test_an_answer_ends_before_a_stop(speaking, asked, alone):
    conversations = [Asked(chat(picture, text), SETTINGS, (" and ",)) for picture, text, _ in asked]
    said = [one.text for one in Answerer(Guard(*speaking, []), rows=4).answer(conversations)]
    assert any(" and " in one for one in alone["plain"])
    assert said == [one.split(" and ")[0] for one in alone["plain"]]


def test_lmms_eval_gets_an_answer_per_request_and_the_cost(lmms_eval, requests, drawn, alone):
    model = lmms_eval.GuardedModel(pretrained="testbed", stack=str(drawn / "stack.toml"), batch_size="4", device="cpu")
    model.task_dict, made = requests
    results = model.generate_until(made({"max_new_tokens": 44, "until": ["\n\n"]}))
    assert [one.text for one in results] == alone["guarded"]
    (logged,) = lmms_eval.logged
    assert logged["total_requests"] == len(results)
    assert logged["tokens"] == sum(one.token_counts.output_tokens for one in results)
    assert logged["forwards_prefill"] == 2.0
    assert logged["forwards_decode"] * logged["rows_per_forward"] == 2.0
    assert 0 < logged["changed_vcd"] < 1
    assert logged["seconds"] > 0
    assert logged["peak_resident_mb"] > 50


def test_the_plain_stack_costs_what_plain_generate_costs(lmms_eval, requests, alone):
    model = lmms_eval.GuardedModel(pretrained="testbed", stack="plain", batch_size=9, device="cpu")
    model.task_dict, made = requests
    assert [one.text for one in model.generate_until(made({"max_new_tokens": 44}))] == alone["plain"]
    (logged,) = lmms_eval.logged
    names = ("forwards_prefill", "forwards_decode", "forwards_per_token", "rows_per_forward")
    assert [logged[name] for name in names] == [1.0] * 4


def test_warnings_are_seen_although_lmms_eval_silences_all(lmms_eval, requests, recwarn, alone):
    model = lmms_eval.GuardedModel(pretrained="testbed", stack="plain", batch_size=9, device="cpu")
    model.task_dict, made = requests
    warnings.filterwarnings("ignore")
    model.generate_until(made({"max_new_tokens": 2, "image_aspect_ratio": "pad"}))
    assert ["image_aspect_ratio" in str(one.message) for one in recwarn] == [True]


def test_what_calls_no_generate_is_refused(lmms_eval):
    model = lmms_eval.GuardedModel(pretrained="testbed", device="cpu")
    with pytest.raises(ModeRefused, match="without generate"):
        model.loglikelihood([])
    with pytest.raises(ModeRefused, match="several rounds"):
        model.generate_until_multi_round([])


def test_the_model_is_given_back_before_judges_run(lmms_eval):
    model = lmms_eval.GuardedModel(pretrained="testbed", device="cpu")
    model.clean()
    assert not any(isinstance(one, Guard) for one in vars(model).values())
    assert model.cleaned


@pytest.fixture
def contexts(speaking, asked):
    """Requests as lm-eval makes them, of the captions alone."""
    template = speaking[1].apply_chat_template
    told = [(picture, text) for picture, text, answer in asked if not answer]
    return [
        SimpleNamespace(args=(template(chat(*one), add_generation_prompt=True), {}, {"visual": [one[0]]}))
        for one in told
    ]


def test_lm_eval_is_guarded_and_told_the_cost(lm_eval, speaking, asked, contexts, alone):
    model = lm_eval.GuardedLM(Guard(*speaking, STRONG))
    wanted = {
        name: [one for one, (_, _, answer) in zip(said, asked, strict=True) if not answer]
        for name, said in alone.items()
    }
    assert model.generate_until(contexts) == wanted["guarded"] != wanted["plain"]
    told = model.get_model_info()["lvlm_guard"]
    assert (told["calls"], told["requests"], told["forwards_prefill"]) == (1, 3, 2.0)
    assert told["stack"][0]["params"]["alpha"] == 3.0
    assert "generate" not in vars(speaking[0])


def test_lm_eval_refuses_what_would_not_be_guarded(lm_eval, speaking, contexts):
    model = lm_eval.GuardedLM(Guard(*speaking, STRONG))
    for ask in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(ModeRefused, match="without generate"):
            ask(contexts)
    model.bypass = True
    with pytest.raises(Refused, match=r"0\.4\.13"):
        model.generate_until(contexts)


def test_lm_eval_needs_the_processor(lm_eval, speaking):
    with pytest.raises(ProcessorNeeded):
        lm_eval.GuardedLM(Guard(speaking[0]))
