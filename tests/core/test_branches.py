"""Every kind of branch against inputs written by hand: pictures, features, places of inserted tokens, replacement."""

import dataclasses
import functools
import inspect

import gold
import numpy as np
import pytest
import torch
from gold import SUPPRESSED, Against
from PIL import Image, ImageOps
from toy_processor import toy_processor

from lvlm_guard import Branch, Guard, Insert, ModelRefused, Replace
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits

SETTINGS = {
    "max_new_tokens": 2, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
IMAGE = 100


def request(ids, config, **more):
    ids = torch.tensor([ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(1, 3, 30, 30)}
    return Request({**inputs, **more}, {}, config)


@pytest.fixture(scope="module")
def qwen():
    return tiny("qwen2_vl")[0].config


PROMPT = [1, 8, 102, 100, 100, 103, 9, 10]


@pytest.mark.parametrize(
    ("edits", "wanted"),
    [
        ((Insert((5, 6), "start"),), [1, 5, 6, 8, 102, 100, 100, 103, 9, 10]),
        ((Insert((5, 6), "before_image"),), [1, 8, 5, 6, 102, 100, 100, 103, 9, 10]),
        ((Insert((5, 6), "after_image"),), [1, 8, 102, 100, 100, 103, 5, 6, 9, 10]),
        ((Insert((5, 6), "end"),), [1, 8, 102, 100, 100, 103, 9, 10, 5, 6]),
        ((Replace((3,)),), [1, 8, 3, 9, 10]),
        ((Replace(()),), [1, 8, 9, 10]),
        ((Insert((5,), "after_image"), Replace((3,))), [1, 8, 3, 5, 9, 10]),
        ((Insert((5,), "after_image"), Insert((6,), "start")), [1, 6, 8, 102, 100, 100, 103, 5, 9, 10]),
    ],
)
def test_tokens_go_where_they_were_asked_to(qwen, edits, wanted):
    qwen.text_config.bos_token_id = 1
    inputs = build_branch_inputs(request(PROMPT, qwen), Branch("x", tokens=edits), None)
    assert inputs["input_ids"][0].tolist() == wanted
    assert inputs["attention_mask"][0].tolist() == [1] * len(wanted)


def test_rows_are_edited_without_their_padding_and_padded_again(qwen):
    ids = torch.tensor([[0, 0, 8, 100, 9], [8, 7, 100, 100, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    types = (ids == IMAGE).long()
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": types,
        "pixel_values": torch.zeros(3, 3, 2, 2),
    }
    got = build_branch_inputs(Request(inputs, {}, qwen), Branch("x", tokens=(Insert((5, 6), "after_image"),)), None)
    assert got["input_ids"].tolist() == [[0, 0, 8, 100, 5, 6, 9], [8, 7, 100, 100, 5, 6, 9]]
    assert got["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert got["mm_token_type_ids"].tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]]
    gone = build_branch_inputs(Request(inputs, {}, qwen), Branch("x", image="removed"), None)
    assert gone["input_ids"].tolist() == [[0, 8, 9], [8, 7, 9]]
    assert gone["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert "pixel_values" not in gone


def with_branch(branch):
    gold.BRANCHES[branch.key] = branch
    return Against(branch.key)


def expected(model, main, branch):
    return (1 + gold.WEIGHT) * next_logits(model, main, ()) - gold.WEIGHT * next_logits(model, branch, ())


def test_a_picture_edit_gives_what_the_edited_picture_gives():
    model, _ = tiny("llava")
    processor = toy_processor()
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    edit = lambda one, generator: ImageOps.mirror(one)  # noqa: E731
    guard = Guard(model, processor, [with_branch(Branch("mirrored", picture=edit))])
    inputs = guard.inputs(images=picture, text="<image> a b c")
    got = guard.generate(**inputs, **SETTINGS).logits[0][0]
    mirrored = processor(images=ImageOps.mirror(picture), text="<image> a b c", return_tensors="pt")
    assert float((got - expected(model, inputs, mirrored)).abs().max()) <= 1e-4
    moved = {name: value.clone() for name, value in inputs.items()}
    assert torch.allclose(guard.generate(**moved, **SETTINGS).logits[0][0], got)
    bare = Guard(model, processor, [Against("mirrored")])
    recovered = bare.generate(**moved, **SETTINGS).logits[0][0]
    assert float((recovered - got).abs().max()) <= 1e-3, "recovered from the pixels, but for rounding"


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "qwen3_vl", "llava_next"])
def test_a_feature_edit_acts_on_the_encoded_image(architecture):
    model, inputs = tiny(architecture)
    guard = Guard(model, None, [with_branch(Branch("shrunk", features=lambda one, generator: one * 0.25))])
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:  # added after 5.17
        with pytest.raises(ModelRefused, match="image features"):
            guard.generate(**inputs, **SETTINGS)
        return
    got = guard.generate(**inputs, **SETTINGS).logits[0][0]
    branch = next_logits_with_features(model, inputs, 0.25)
    wanted = (1 + gold.WEIGHT) * next_logits(model, inputs, ()) - gold.WEIGHT * branch
    assert float((got - wanted).abs().max()) <= 1e-4
    assert float((got - next_logits(model, inputs, ())).abs().max()) > 0.1


def next_logits_with_features(model, inputs, factor):
    """Scale what get_image_features returns, by hand."""
    owner = model.model
    original = owner.get_image_features

    @functools.wraps(original)
    def scaled(*args, **kwargs):
        output = original(*args, **kwargs)
        for name in ("pooler_output", "deepstack_features"):
            if getattr(output, name, None) is not None:
                setattr(output, name, _scaled(getattr(output, name), factor))
        return output

    owner.get_image_features = scaled
    try:
        return next_logits(model, inputs, ())
    finally:
        del owner.get_image_features


def _scaled(value, factor):
    return value * factor if isinstance(value, torch.Tensor) else [_scaled(one, factor) for one in value]


def test_equal_keys_share_one_branch():
    model, inputs = tiny("llava")

    @dataclasses.dataclass(frozen=True)
    class Second(Against):
        name = "second"

    guard = Guard(model, None, [Against("noised"), Second("noised")])
    got = guard.generate(**inputs, **SETTINGS)
    assert guard.report.branches == ("noised",)
    assert guard.report.forwards.prefill == 2.0
    twice = (1 + 2 * gold.WEIGHT) * next_logits(model, inputs, ()) - 2 * gold.WEIGHT * next_logits(
        model, gold.by_hand("noised", inputs), ()
    )
    assert float((got.logits[0][0] - twice).abs().max()) <= 1e-4


def test_the_declared_order_of_strategies_leaves_logits_equal():
    model, inputs = tiny("llava")
    stack = [Against("noised", beta=0.05), "m3id", "vdd"]
    one, other = (
        torch.stack(Guard(model, None, order).generate(**inputs, **SETTINGS).logits) for order in (stack, stack[::-1])
    )
    alive = one > -1e3
    assert torch.equal(alive, other > -1e3)
    assert float((one - other)[alive].abs().max()) <= 1e-4
