"""Labels that nobody gave: captions and answers of the model, crops, a detector, and the logit lens."""

from __future__ import annotations

import pytest
import torch
from lvlm_guard_evidence.lens import build_lenses
from lvlm_guard_evidence.names import NamesTable
from lvlm_guard_evidence.patch_evidence_fitter import find_basis
from lvlm_guard_evidence.recording import record_tokens
from lvlm_guard_evidence.sources import label_by_captions, label_by_crops, label_by_detector

from lvlm_guard import InputError, testbed
from lvlm_guard.fitting import LabelledObject, LabelledPicture
from lvlm_guard.testbed.labelled import label_scenes
from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES


@pytest.fixture(scope="module")
def model_and_processor():
    return testbed.load()


@pytest.fixture(scope="module")
def pictures():
    return label_scenes("train", 48)


def test_captions_label_pictures_where_the_model_stands_by_them(model_and_processor, pictures):
    bare = [LabelledPicture(each.picture) for each in pictures]
    labelled = label_by_captions(*model_and_processor, bare, {}, iter)
    assert 30 < len(labelled) <= 48
    truth = {id(each.picture): {thing.name: thing.attributes[0] for thing in each.objects} for each in pictures}
    things = [(each, thing) for each in labelled for thing in each.objects]
    assert {thing.name for _, thing in things} <= set(CATEGORIES)
    right = [thing.name in truth[id(each.picture)] for each, thing in things]
    coloured = [thing.attributes[0] in COLOUR_NAMES for _, thing in things if thing.attributes]
    assert sum(right) > 0.8 * len(right)
    assert all(coloured)
    assert len(coloured) > 0.9 * len(things)


def test_captions_that_name_nothing_twice_are_refused(model_and_processor, pictures):
    with pytest.raises(InputError, match="names in 8 captions or more, and the model's 2 captions"):
        label_by_captions(*model_and_processor, pictures[:2], {}, iter)


def test_crops_are_asked_one_by_one(model_and_processor, pictures):
    table = NamesTable(("mug", "boat"))
    labelled = label_by_crops(*model_and_processor, pictures[:2], table, iter)
    assert [each.picture for each in labelled] == [each.picture for each in pictures[:2]]
    for thing in (thing for each in labelled for thing in each.objects):
        assert thing.name in table.names
        assert thing.box[2] - thing.box[0] == pytest.approx(64 / 3)


def test_a_detector_labels_pictures(pictures):
    labelled = label_by_detector(lambda picture: [(1, 2, picture.width, 4, "Mug")], pictures[:1], iter)
    assert labelled[0].objects == (LabelledObject("mug", (1.0, 2.0, 64.0, 4.0)),)
    with pytest.raises(InputError, match="boxes"):
        label_by_detector(lambda _: ["mug"], pictures[:1], iter)
    with pytest.raises(InputError, match="detector"):
        label_by_detector(lambda _: 1 / 0, pictures[:1], iter)


@torch.no_grad()
def test_the_lens_is_the_models_own_norm_and_head(model_and_processor, pictures):
    model, processor = model_and_processor
    table = NamesTable(("mug", "boat"))
    lenses = build_lenses(model, processor, pictures[:4], table, ("red",), iter)
    assert [head.layer for head, _ in lenses] == [0, 4, 6, 8]
    head, recorded = lenses[1]
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    inputs = processor(images=pictures[0].picture, text=text, return_tensors="pt")
    states = model(**inputs, output_hidden_states=True).hidden_states[4][0]
    image = inputs["input_ids"][0] == model.config.image_token_id
    norm = model.model.language_model.norm
    ids = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("mug", "boat", "red")]
    expected = model.lm_head(norm(states[image]))[:, ids]
    assert torch.allclose(head.score(recorded.tokens[0]), expected, atol=1e-3)
    assert float(expected.std()) > 0.1
    totals = torch.stack([head.score(each).logsumexp(0) for each in recorded.tokens]) + head.bias
    assert torch.allclose(totals.mean(0), torch.zeros(3), atol=1e-4)


def test_many_numbers_are_reduced_to_the_directions_that_vary_most(model_and_processor, pictures):
    model, processor = model_and_processor
    assert find_basis(model, processor, pictures[:4]) is None
    basis = find_basis(model, processor, pictures[:4], most=16)
    assert torch.allclose(basis.T @ basis, torch.eye(16), atol=1e-4)
    whole, _ = record_tokens(model, processor, [pictures[0].picture])
    reduced, _ = record_tokens(model, processor, [pictures[0].picture], basis=basis)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(reduced[0] @ weight.T, whole[0] @ (weight @ basis.T).T, atol=1e-3)
