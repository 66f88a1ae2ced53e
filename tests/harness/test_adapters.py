"""The adapters on stand-ins for the harnesses: the answers, their order, and the cost they report."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from lvlm_guard import Guard, ModeRefused, ProcessorNeeded, Refused, Stack
from lvlm_guard.harness.answering import Answerer, form_batches
from lvlm_guard.harness.questions import HarnessQuestion

SETTINGS = {"max_new_tokens": 44, "do_sample": False}
STRONG = Stack.of({"name": "vcd", "params": {"alpha": 3.0}})


def write_chat(picture, text):
    return [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": text}]}]


def to_messages(document):
    picture, question, _ = document
    return write_chat(picture, question)


@pytest.fixture(scope="module")
def single_answers(bundled, documents):
    """Answers generated one by one, plain and guarded."""
    guards = {"plain": Guard(*bundled, []), "guarded": Guard(*bundled, STRONG)}
    return {
        name: [guard.chat(write_chat(picture, text), **SETTINGS) for picture, text, _ in documents]
        for name, guard in guards.items()
    }


@pytest.fixture
def requests(documents):
    """Documents by task, and a function from settings to requests as lmms-eval builds them."""

    def build_requests(settings):
        arguments = [("", to_messages, settings, number, "drawn", "test") for number in range(len(documents))]
        return [SimpleNamespace(args=of_request) for of_request in arguments]

    return {"drawn": {"test": documents}}, build_requests


def test_batches_hold_equal_settings_and_either_pictures_or_none():
    kinds = [("a", 1), ("b", 1), ("a", 0), ("a", 1), ("a", 1)]
    questions = [
        HarnessQuestion(write_chat("p", "?") if has_picture else [{"role": "user", "content": "?"}], {"x": name})
        for name, has_picture in kinds
    ]
    assert list(form_batches(questions, 2)) == [[0, 3], [4], [1], [2]]


def test_batched_answers_equal_single_answers_in_the_same_order(bundled, documents, single_answers):
    questions = [HarnessQuestion(write_chat(picture, text), SETTINGS) for picture, text, _ in documents]
    answerer = Answerer(Guard(*bundled, STRONG), batch_size=4)
    texts = [answer.text for answer in answerer.answer(questions)]
    assert texts == single_answers["guarded"]
    assert texts != single_answers["plain"]
    assert (answerer.cost.calls, answerer.cost.requests) == (3, len(documents))


def test_answers_on_looks_equal_single_answers(bundled, documents, single_answers):
    """Each picture is asked about twice, in a batch with other pictures."""
    pairs = [(picture, asked) for picture, text, _ in documents for asked in (text, "Is there a circle?")]
    questions = [HarnessQuestion(write_chat(picture.copy(), text), SETTINGS) for picture, text in pairs]
    answerer, whole = (Answerer(Guard(*bundled, STRONG), batch_size=5, looks=looks) for looks in (True, False))
    answers = answerer.answer(questions)
    assert answers == whole.answer(questions)
    assert [answer.text for answer in answers[::2]] == single_answers["guarded"]
    assert answerer.cost.requests == whole.cost.requests == len(questions)
    assert answerer.cost.calls > whole.cost.calls


def test_an_answer_ends_before_a_stop(bundled, documents, single_answers):
    questions = [HarnessQuestion(write_chat(picture, text), SETTINGS, (" and ",)) for picture, text, _ in documents]
    texts = [answer.text for answer in Answerer(Guard(*bundled, []), batch_size=4).answer(questions)]
    assert any(" and " in text for text in single_answers["plain"])
    assert texts == [text.split(" and ")[0] for text in single_answers["plain"]]


def test_lmms_eval_gets_an_answer_per_request_and_the_cost(lmms_eval, requests, task_folder, single_answers):
    stack = str(task_folder / "stack.toml")
    model = lmms_eval.GuardedModel(pretrained="testbed", stack=stack, batch_size="4", device="cpu")
    model.task_dict, build_requests = requests
    results = model.generate_until(build_requests({"max_new_tokens": 44, "until": ["\n\n"]}))
    assert [result.text for result in results] == single_answers["guarded"]
    (logged,) = lmms_eval.logged
    assert logged["total_requests"] == len(results)
    assert logged["tokens"] == sum(result.token_counts.output_tokens for result in results)
    assert logged["forwards_prefill"] == 2.0
    assert logged["forwards_decode"] * logged["rows_per_forward"] == 2.0
    assert 0 < logged["changed_vcd"] < 1
    assert logged["seconds"] > 0
    assert logged["peak_resident_mb"] > 50


def test_the_plain_stack_costs_the_same_as_plain_generate(lmms_eval, requests, single_answers):
    model = lmms_eval.GuardedModel(pretrained="testbed", stack="plain", batch_size=9, device="cpu")
    model.task_dict, build_requests = requests
    results = model.generate_until(build_requests({"max_new_tokens": 44}))
    assert [result.text for result in results] == single_answers["plain"]
    (logged,) = lmms_eval.logged
    names = ("forwards_prefill", "forwards_decode", "forwards_per_token", "rows_per_forward")
    assert [logged[name] for name in names] == [1.0] * 4


def test_warnings_are_shown_although_lmms_eval_silences_all(lmms_eval, requests, recwarn):
    model = lmms_eval.GuardedModel(pretrained="testbed", stack="plain", batch_size=9, device="cpu")
    model.task_dict, build_requests = requests
    warnings.filterwarnings("ignore")
    model.generate_until(build_requests({"max_new_tokens": 2, "image_aspect_ratio": "pad"}))
    assert ["image_aspect_ratio" in str(warning.message) for warning in recwarn] == [True]


def test_tasks_that_do_not_call_generate_are_refused(lmms_eval):
    model = lmms_eval.GuardedModel(pretrained="testbed", device="cpu")
    with pytest.raises(ModeRefused, match="without generate"):
        model.loglikelihood([])
    with pytest.raises(ModeRefused, match="several rounds"):
        model.generate_until_multi_round([])


def test_the_model_is_released_before_judges_run(lmms_eval):
    model = lmms_eval.GuardedModel(pretrained="testbed", device="cpu")
    model.clean()
    assert not any(isinstance(value, Guard) for value in vars(model).values())
    assert model.is_clean


@pytest.fixture
def caption_requests(bundled, documents):
    """Requests for the captions, as lm-eval builds them."""
    template = bundled[1].apply_chat_template
    captions = [(picture, text) for picture, text, answer in documents if not answer]
    return [
        SimpleNamespace(
            args=(template(write_chat(picture, text), add_generation_prompt=True), {}, {"visual": [picture]})
        )
        for picture, text in captions
    ]


def test_lm_eval_is_guarded_and_reports_the_cost(lm_eval, bundled, documents, caption_requests, single_answers):
    model = lm_eval.GuardedLM(Guard(*bundled, STRONG))
    captions = {
        name: [text for text, (_, _, answer) in zip(texts, documents, strict=True) if not answer]
        for name, texts in single_answers.items()
    }
    assert model.generate_until(caption_requests) == captions["guarded"] != captions["plain"]
    info = model.get_model_info()["lvlm_guard"]
    assert (info["calls"], info["requests"], info["forwards_prefill"]) == (1, 3, 2.0)
    assert info["stack"][0]["params"]["alpha"] == 3.0
    assert "generate" not in vars(bundled[0])


def test_lm_eval_refuses_requests_that_would_not_be_guarded(lm_eval, bundled, caption_requests):
    model = lm_eval.GuardedLM(Guard(*bundled, STRONG))
    for compute_likelihood in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(ModeRefused, match="without generate"):
            compute_likelihood(caption_requests)
    model.bypass = True
    with pytest.raises(Refused, match=r"0\.4\.13"):
        model.generate_until(caption_requests)


def test_lm_eval_needs_the_processor(lm_eval, bundled):
    with pytest.raises(ProcessorNeeded):
        lm_eval.GuardedLM(Guard(bundled[0]))
