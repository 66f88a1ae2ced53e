"""Every figure of an answer's diagnosis equals a direct recompute, on eager attention and with no guard in sight."""

from __future__ import annotations

import json
import re
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from answer_figures import (
    ANSWER,
    PROMPT,
    attention_by_hand,
    build_guard,
    lens_by_hand,
    logits_by_hand,
    read_words,
    without_image,
)
from evidence_heads import image_features, make_head
from lvlm_guard_evidence.head import read_head

from lvlm_guard import Artefact, Guard, InputError, ModelInfo, ModelRefused, ProcessorNeeded, testbed
from lvlm_guard.anatomy import image_token_id
from lvlm_guard.diagnosis import Cause, Culprit, Diagnosis, diagnose_answer
from lvlm_guard.diagnosis.answer import diagnosing, occlusion, recording
from lvlm_guard.diagnosis.answer.causes import find_causes
from lvlm_guard.diagnosis.answer.forcing import AnswerRequest, bound_length
from lvlm_guard.diagnosis.answer.occlusion import cover_cells, shrink
from lvlm_guard.testbed.world.scenes import scene
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.intact import fingerprint
from lvlm_guard.testing.sequences import pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")
ARCHITECTURES = ["llava", "qwen2_vl", "gemma3", "idefics3"]
DOUBT = {"reader": read_words}


def diagnose(architecture="llava", **settings):
    guard = build_guard(architecture)
    return diagnose_answer(guard, pictures(1)[0], PROMPT, **{"answer": ANSWER, "doubt": DOUBT, "cells": 0, **settings})


@pytest.fixture(scope="module", params=ARCHITECTURES)
def diagnosed(request):
    architecture = request.param
    guard = build_guard(architecture)
    batch = guard.inputs(images=pictures(1), text=[f"user <image> {PROMPT}"])
    guard.model.generate(**batch, max_new_tokens=1, do_sample=False)  # transformers leaves hooks of its own
    before = fingerprint(guard.model)
    diagnosis = diagnose_answer(guard, pictures(1)[0], PROMPT, answer=ANSWER, doubt=DOUBT, cells=0)
    assert fingerprint(guard.model) == before
    return architecture, diagnosis


def test_probabilities_are_those_of_the_model_by_itself(diagnosed):
    architecture, diagnosis = diagnosed
    logits, ids = logits_by_hand(architecture)
    logs = logits.double().log_softmax(-1)
    assert [word.text for word in diagnosis.words] == re.findall(r"[\w-]+", ANSWER)
    for place, word in enumerate(diagnosis.words):
        row, token = logs[place], ids[place]
        assert word.log_probability == pytest.approx(float(row[token]), abs=1e-4)
        assert word.entropy == pytest.approx(float(torch.special.entr(row.exp()).sum()), abs=1e-4)
        assert word.max_probability == pytest.approx(float(row.exp().max()), abs=1e-5)
        assert word.is_choice == (int(row.argmax()) == token)
    assert float(logs[range(len(ids)), ids].std()) > 0.1


def test_image_free_probabilities_are_those_of_the_prompt_without_the_image(diagnosed):
    architecture, diagnosis = diagnosed
    if any("image-free" in line for line in diagnosis.partial):
        pytest.skip(str(diagnosis.partial))
    logits, ids = logits_by_hand(architecture, without_image)
    logs = logits.double().log_softmax(-1)
    for place, word in enumerate(diagnosis.words):
        assert word.image_free_log_probability == pytest.approx(float(logs[place, ids[place]]), abs=1e-4)
        assert word.is_image_free_choice == (int(logs[place].argmax()) == ids[place])
        assert word.log_ratio == pytest.approx(word.log_probability - word.image_free_log_probability)
    assert max(abs(word.log_ratio) for word in diagnosis.words) > 0.1


def test_attention_is_that_of_eager_attention(diagnosed):
    architecture, diagnosis = diagnosed
    masses, patches = attention_by_hand(architecture)
    asked = [place for place, word in enumerate(diagnosis.words) if word.level is not None]
    for place, word in enumerate(diagnosis.words):
        assert word.image_attention == pytest.approx(float(masses[:, :, place].mean()), abs=1e-5)
    expected = masses[:, :, asked].mean(-1)
    torch.testing.assert_close(torch.tensor(diagnosis.maps.attention), expected, atol=1e-5, rtol=0)
    for place, map_ in diagnosis.maps.attended.items():
        torch.testing.assert_close(torch.tensor(map_), patches[place], atol=1e-5, rtol=0)
    assert diagnosis.maps.attended
    assert float(masses.std()) > 0.01


def test_the_lens_reads_hidden_states_by_norm_and_head(diagnosed):
    architecture, diagnosis = diagnosed
    expected = lens_by_hand(architecture)
    for place, layers in diagnosis.maps.lens.items():
        torch.testing.assert_close(torch.tensor(layers), expected[:, :, place], atol=1e-5, rtol=0)
        assert diagnosis.maps.presence(place) == tuple(max(layer) for layer in layers)
    assert diagnosis.maps.lens
    assert float(expected.std()) > 1e-3


def test_margins_are_those_of_the_strategy_and_doubts_go_by_them(diagnosed):
    _, diagnosis = diagnosed
    for place, word in enumerate(diagnosis.words):
        assert (word.by, word.level) == (("entropy", None) if place % 2 else ("margin", "object"))
    assert len({word.margin for word in diagnosis.words if word.margin is not None}) > 1


def test_occlusion_is_how_far_a_word_falls_on_the_covered_picture():
    diagnosis = diagnose(cells=3)
    logs, ids = logits_by_hand("llava")
    base = logs.double().log_softmax(-1)
    covered = list(cover_cells(pictures(1)[0], 3))
    assert diagnosis.maps.occlusion_grid == (3, 3)
    for cell in (0, 4, 8):
        logits, _ = logits_by_hand("llava", picture=covered[cell])
        changed = logits.double().log_softmax(-1)
        for place, falls in diagnosis.maps.occlusion.items():
            expected = float(base[place, ids[place]] - changed[place, ids[place]])
            assert falls[cell] == pytest.approx(expected, abs=1e-4)
    assert max(abs(fall) for falls in diagnosis.maps.occlusion.values() for fall in falls) > 0.01


def test_covered_pictures_are_held_a_batch_at_a_time(monkeypatch):
    covered, alive = [], []

    def cover(picture, cells):
        for each in cover_cells(picture, cells):
            covered.append(weakref.ref(each))
            yield each

    def compute(request, shown, ids):
        alive.append(sum(each() is not None for each in covered))
        return torch.zeros(len(shown), len(ids))

    monkeypatch.setattr(occlusion, "cover_cells", cover)
    monkeypatch.setattr(occlusion, "compute_log_probabilities", compute)
    diagnosis = diagnose(cells=9)
    assert len(covered) == 81
    assert len(next(iter(diagnosis.maps.occlusion.values()))) == 81
    assert max(alive) <= occlusion.AT_ONCE + 1


def test_the_own_answer_is_plain_generates():
    guard = build_guard("llava")
    diagnosis = diagnose_answer(guard, pictures(1)[0], PROMPT, max_new_tokens=4, maps=False, doubt=DOUBT)
    batch = guard.inputs(images=pictures(1), text=[f"user <image> {PROMPT}"])
    output = guard.model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert diagnosis.answer == guard.processor.tokenizer.decode(output[0, batch["input_ids"].shape[1] :])
    assert diagnosis.answered_by == "model"
    assert all(word.is_choice for word in diagnosis.words)
    assert diagnosis.maps is None


def test_under_a_stack_words_are_judged_as_guarded():
    plain, guarded = (
        diagnose(),
        diagnose_answer(build_guard("llava").using("vcd"), pictures(1)[0], PROMPT, answer=ANSWER, doubt=DOUBT, cells=0),
    )
    assert guarded.stack == ("vcd",)
    differences = [a.log_probability - b.log_probability for a, b in zip(plain.words, guarded.words, strict=True)]
    assert max(map(abs, differences)) > 0.01


def test_a_strategy_that_revises_is_left_out_and_named():
    guard = build_guard("llava").using([{"name": "revise", "params": {"rounds": 1}}])
    diagnosis = diagnose_answer(guard, pictures(1)[0], PROMPT, answer=ANSWER, doubt=DOUBT, maps=False)
    assert any("'revise' chose or revised the answer" in line for line in diagnosis.partial)


def test_two_pictures_have_words_but_no_maps():
    guard = build_guard("llava")
    diagnosis = diagnose_answer(guard, pictures(2), PROMPT, answer=ANSWER, doubt=DOUBT)
    assert diagnosis.maps.attention == ()
    assert any("No maps" in line for line in diagnosis.partial)
    assert any("Not all words were asked about" in line for line in diagnosis.partial)
    assert {word.by for word in diagnosis.words} == {"entropy"}


def test_what_a_model_refuses_is_left_out_with_the_reason(monkeypatch):
    def capture(*arguments, **options):
        raise ModelRefused("no attention to be seen")

    monkeypatch.setattr(recording, "AttentionCapture", capture)
    diagnosis = diagnose()
    assert "No attention: no attention to be seen" in diagnosis.partial
    assert diagnosis.words[0].image_attention is None
    assert diagnosis.words[0].image_free_log_probability is not None
    assert diagnosis.maps.lens


def test_plain_values_are_json_and_verdicts_by_the_schema():
    values = json.loads(json.dumps(diagnose(cells=2, threshold=0.0).to_dict(), allow_nan=False))
    assert values["format"] == "lvlm-guard answer diagnosis"
    assert values["verdicts"]
    for entry in values["verdicts"]:
        verdict = Diagnosis.from_dict(entry)
        assert verdict.culprit.component in ("decoding", "unknown")
        start, end = verdict.span
        assert values["answer"][start:end] in {word["text"] for word in values["words"]}


def test_the_same_diagnosis_twice_and_in_threads():
    guard = build_guard("llava")

    def run():
        return diagnose_answer(guard, pictures(1)[0], PROMPT, answer=ANSWER, doubt=DOUBT, cells=0).to_dict()

    expected, results = run(), []
    threads = [threading.Thread(target=lambda: results.append(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected, expected]


def test_patch_evidence_is_what_the_head_reads_off_the_picture(tmp_path):
    model, processor = testbed.load()
    picture = scene("iid", 0).picture
    artefact, _ = make_head(tmp_path / "head.safetensors", model, width=model.config.text_config.hidden_size)
    answer = "in this kitchen there is a red mug and a spoon left of the clock ."
    diagnosis = diagnose_answer(
        model, picture, "describe this image .", processor=processor, answer=answer, artefact=artefact, maps=False
    )
    head = read_head(Artefact.load(artefact, "patch_evidence", ModelInfo(config=model.config)))
    inputs = Guard(model, processor, None).inputs(images=[picture], text=["<image>"])
    evidence = head.read(head.score(image_features(model, dict(inputs))[0]), None)
    figures = {word.text: word.evidence for word in diagnosis.words}
    assert figures["mug"] == pytest.approx(evidence.existence("mug"), abs=1e-4)
    assert figures["spoon"] == pytest.approx(evidence.existence("spoon"), abs=1e-4)
    assert figures["red"] == pytest.approx(evidence.attribute("mug", "red"), abs=1e-4)
    assert figures["clock"] is None  # which the head does not know
    assert figures["mug"] != figures["spoon"]


def test_what_sampling_chose_is_called_so():
    guard = build_guard("llava")
    torch.manual_seed(0)
    sampled = diagnose_answer(
        guard, pictures(1)[0], PROMPT, max_new_tokens=6, maps=False, doubt=DOUBT, threshold=0.0,
        generate={"do_sample": True, "temperature": 3.0},
    )  # fmt: skip
    unlikely = [word for word in sampled.words if not word.is_choice]
    assert unlikely
    assert all(any(cause.name == "decoding" for cause in word.causes) for word in unlikely)


def word_like(**changes):
    word = diagnose(maps=False).words[0]
    plain = {
        "is_choice": True,
        "evidence": None,
        "is_image_free_choice": False,
        "image_free_log_probability": word.log_probability - 5,
    }
    return replace(word, **{**plain, **changes})


FAULT = Diagnosis(Culprit("head", "decoder", 3, 1, 9.0, 3.0))


@pytest.mark.parametrize(
    ("changes", "fault", "names"),
    [
        ({}, None, ["unknown"]),
        ({"is_choice": False}, None, ["decoding"]),
        ({"evidence": -1.0}, None, ["weak evidence"]),
        ({"evidence": 1.0}, None, ["unknown"]),
        ({"is_image_free_choice": True}, None, ["prior"]),
        ({}, FAULT, ["model fault"]),
        ({}, Diagnosis(Culprit("none", "none")), ["unknown"]),
        ({"is_choice": False, "is_image_free_choice": True}, FAULT, ["decoding", "prior", "model fault"]),
    ],
)
def test_causes(changes, fault, names):
    causes = find_causes(word_like(**changes), fault)
    assert [cause.name for cause in causes] == names
    assert all(isinstance(cause, Cause) and cause.because for cause in causes)


def test_little_more_than_without_the_picture_is_weak_evidence():
    word = word_like()
    weak = word_like(image_free_log_probability=word.log_probability - 0.1)
    assert [cause.name for cause in find_causes(weak, None)] == ["weak evidence"]


def test_a_model_fault_comes_from_a_file_alone(tmp_path):
    path = tmp_path / "fault.json"
    path.write_text(FAULT.to_json(), encoding="utf-8")
    with_fault = diagnose(maps=False, threshold=0.0, model_diagnosis=path)
    assert any(cause.name == "model fault" for word in with_fault.doubtful for cause in word.causes)
    assert "layer 3, head 1" in next(
        c.because for w in with_fault.doubtful for c in w.causes if c.name == "model fault"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": " "}, "The answer is empty"),
        ({"answer": "no-17 zebra"}, "does not survive its tokens"),
        ({"threshold": 2}, "threshold is a number"),
        ({"threshold": "high"}, "threshold is a number"),
        ({"artefact": "/no/such/head.safetensors", "maps": False}, "no/such/head"),
        ({"doubt": {"questions": "x"}}, "questions"),
        ({"cells": 99}, "cells is a whole number"),
        ({"model_diagnosis": "/no/such/file"}, "no diagnosis of a model"),
        ({"model_diagnosis": {"level": "none"}}, "no diagnosis by the schema"),
        ({"nonsense": 1}, "has no setting 'nonsense'"),
        ({"answer": None, "max_new_tokens": 0}, "max_new_tokens is a whole number"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        diagnose(**settings)


@pytest.mark.parametrize(
    ("picture", "prompt", "message"),
    [
        (None, PROMPT, "needs a picture"),
        ([], PROMPT, "needs a picture"),
        ("/no/such/picture.png", PROMPT, "picture"),
        (pictures(1)[0], " ", "needs a question"),
    ],
)
def test_bad_requests_are_named(picture, prompt, message):
    with pytest.raises(InputError, match=message):
        diagnose_answer(build_guard("llava"), picture, prompt, answer=ANSWER)


def test_a_model_needs_its_processor():
    model, _ = tiny("llava")
    with pytest.raises(ProcessorNeeded):
        diagnose_answer(model, pictures(1)[0], PROMPT, answer=ANSWER)
    diagnosis = diagnose_answer(
        model, pictures(1)[0], PROMPT, processor=TinyProcessor("llava"), answer=ANSWER, doubt=DOUBT, maps=False
    )
    assert diagnosis.stack == ()
    assert image_token_id(model.config) is not None


def test_a_long_answer_is_cut(monkeypatch):
    monkeypatch.setattr(diagnosing, "MOST_TOKENS", 3)
    diagnosis = diagnose(maps=False)
    assert len(diagnosis.words) == 3
    assert "The answer has 5 tokens; the first 3 are looked at." in diagnosis.partial


def test_attention_of_a_long_answer_is_kept_only_as_far_as_there_is_room(monkeypatch):
    whole = diagnose()
    monkeypatch.setattr(recording, "MOST_PATCHES", 2 * len(whole.maps.attended[0]) - 1)
    cut = diagnose()
    assert set(whole.maps.attended) == set(range(5))
    assert cut.maps.attended == {word: whole.maps.attended[word] for word in (0, 1)}
    assert cut.maps.attention == whole.maps.attention
    assert cut.words == whole.words


def test_an_answer_has_the_room_that_the_decoder_leaves():
    request = AnswerRequest(build_guard("llava"), (), PROMPT)
    assert request.guard.model.config.get_text_config().max_position_embeddings == 512
    assert [bound_length(request, 30, most) for most in (5000, 100)] == [482, 100]
    assert bound_length(request, 600, 100) == 1


class CountingProcessor(TinyProcessor):
    """Notes the sizes of the pictures that it prepares."""

    def __init__(self, architecture):
        super().__init__(architecture)
        self.sizes = []

    def __call__(self, images=None, text=(), **options):
        self.sizes += [image.size for image in images or ()]
        return super().__call__(images, text, **options)


def test_a_large_picture_is_prepared_once_for_all_runs_and_once_for_the_questions():
    processor = CountingProcessor("llava")
    guard = Guard(tiny("llava")[0], processor, None)
    large = pictures(1)[0].resize((3000, 2400))
    diagnosis = diagnose_answer(guard, large, PROMPT, doubt=DOUBT, cells=2, max_new_tokens=6)
    assert diagnosis.maps.occlusion, diagnosis.partial
    assert diagnosis.maps.lens, diagnosis.partial
    assert any(word.margin is not None for word in diagnosis.words)
    assert diagnosis.model_view is not None
    assert processor.sizes.count(large.size) == 2
    assert processor.sizes.count((2048, 1638)) == 5


def test_huge_pictures_are_made_smaller_for_occlusion():
    large = pictures(1)[0].resize((4000, 100))
    assert shrink(large).size == (2048, 51)
    assert shrink(pictures(1)[0]) is not None
    assert isinstance(build_guard("llava"), Guard)
