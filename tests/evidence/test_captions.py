"""min(0, weight * evidence + offset) on the first tokens of names, at every token of a caption."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from evidence_heads import NAMES, SCALES, Asking, image_features, make_head
from lvlm_guard_evidence import PatchEvidence
from lvlm_guard_evidence.caption_fitting import fit_captions
from lvlm_guard_evidence.captions import read_caption_weights
from lvlm_guard_evidence.head import EvidenceHead
from lvlm_guard_evidence.names import NamesTable
from twin import Twin

from lvlm_guard import Guard, testbed
from lvlm_guard.testbed.labelled import label_scenes
from lvlm_guard.testing import tiny

TOKENS = {"mug": [14, 32], "spoon": [20, 38], "dining table": [5, 23]}
WEIGHT, OFFSET = -0.7, 0.2  # a weight below 0, so that what the random pictures show is pushed


@pytest.mark.parametrize("architecture", [name for name in OF_STRATEGIES if isinstance(name, str)])
def test_names_are_pushed_at_every_token(tmp_path, monkeypatch, architecture):
    monkeypatch.setattr("against_twin.Words", lambda: Asking("describe this image ."))
    path, tensors = make_head(tmp_path / "head", tiny(architecture)[0], captions=[WEIGHT, OFFSET])
    pushes = []

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        scores = image_features(model, inputs)[0] @ tensors["weight"].T
        pushed = main.clone()
        for index, name in enumerate(NAMES):
            raw = float(scores[:, index].logsumexp(0) + tensors["bias"][index])
            odds = max(-20.0, min(20.0, SCALES["object"][0] * raw + SCALES["object"][1]))
            pushes.append(min(0.0, WEIGHT * odds + OFFSET))
            pushed[TOKENS[name]] += pushes[-1]
        return pushed, main

    check([PatchEvidence(path)], gold, architecture, tokens=3)
    assert min(pushes) < -0.1


def test_only_captions_are_pushed_and_only_where_weights_were_fitted(tmp_path):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **settings).logits[0]

    def change(text, weights, **parameters):
        path, _ = make_head(tmp_path / f"{len(list(tmp_path.iterdir()))}", model, captions=weights)
        guard = Guard(model, Asking(text), [PatchEvidence(path, **parameters)])
        logits = guard.generate(**inputs, **settings).logits[0]
        return float((logits - plain).abs().max()), guard.report.results["patch_evidence"]["requests"]

    assert change("describe this image .", [WEIGHT, OFFSET])[0] > 0.1
    assert change("describe this image .", [WEIGHT, OFFSET])[1] == ["caption"]
    with pytest.warns(match="changed no logit"):
        assert change("describe this image .", []) == (0.0, ["question not read"])
    with pytest.warns(match="changed no logit"):
        assert change("describe this image .", [WEIGHT, OFFSET], captions=False)[0] == 0.0
    with pytest.warns(match="changed no logit"):
        assert change("write a poem .", [WEIGHT, OFFSET])[0] == 0.0
    assert read_caption_weights({"captions": []}) is None


def test_a_head_that_knows_nothing_gets_no_weights_for_captions():
    model, processor = testbed.load()
    head = EvidenceHead(torch.zeros(2, 128), torch.full((2,), -4.0), NamesTable(("mug", "boat")))
    weights, report = fit_captions(model, processor, head, label_scenes("calibration", 6), iter)
    assert weights is None
    assert report["greedy"]["named"] >= 0
