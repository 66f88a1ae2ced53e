"""What a model is asked: drawn pictures of several sizes, prompts with and without a chat template."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from saved_models import PROCESSORS

from lvlm_guard import Guard, InputError, ProcessorNeeded, testbed
from lvlm_guard.testing.intact import weights_digest
from lvlm_guard.testing.tiny import tiny
from lvlm_guard.verification.checks import Unproven
from lvlm_guard.verification.prompts import PromptSet, draw_pictures

PICTURES = [Image.new("RGB", (20, 20), colour) for colour in ("teal", "navy")]


def test_drawn_pictures_are_always_the_same_and_of_several_sizes(guard):
    config = guard.model.config
    first, again = draw_pictures(config), draw_pictures(config)
    assert len({picture.size for picture in first}) == 3
    assert all(np.array_equal(picture, other) for picture, other in zip(first, again, strict=True))
    assert all(len(np.unique(np.asarray(picture))) > 20 for picture in first)


def test_prompts_are_of_several_lengths_and_padded_on_the_left(guard):
    prompts = PromptSet(guard)
    lengths = [prompts.row(row)["input_ids"].shape[1] for row in range(prompts.size)]
    assert len(set(lengths)) == 3
    mask = prompts.batch()["attention_mask"]
    assert mask.sum(1).tolist() == lengths
    assert mask[:, -1].all()


def test_pictures_are_of_one_size_where_a_processor_makes_no_batch_of_several():
    prompts = PromptSet(Guard(*testbed.load(), None))
    assert prompts.batch()["pixel_values"].shape[0] == 3


def test_a_processor_without_a_template_gets_text_with_its_placeholder(guard):
    guard.processor.chat_template = None
    ids = PromptSet(guard).first["input_ids"]
    assert int((ids == 100).sum()) == 25


def test_a_batch_that_the_processor_refuses_is_unproven(guard, monkeypatch):
    prompts = PromptSet(guard)
    guard.processor.tokenizer.pad_token = None
    with pytest.raises(Unproven, match="no batch"):
        prompts.batch()


def test_a_guard_without_a_processor_is_told_so():
    with pytest.raises(ProcessorNeeded):
        PromptSet(Guard(tiny("llava")[0], None, None))


def test_a_digest_of_weights_sees_every_dtype_and_inner_tensors():
    from torch.testing._internal.two_tensor import TwoTensor  # noqa: PLC0415 - stands for quantised weights

    layer = torch.nn.Linear(3, 4)
    digests = [weights_digest(layer)]
    digests += [weights_digest(layer.to(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float64)]
    for scale in (1, 2):
        layer.weight = torch.nn.Parameter(TwoTensor(torch.ones(4, 3), scale * torch.ones(4, 3)))
        digests.append(weights_digest(layer))
    layer.weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.uint8), requires_grad=False)
    digests.append(weights_digest(layer))
    assert len(set(digests)) == len(digests)


def test_a_digest_of_weights_sees_columns_that_changed_places():
    layer = torch.nn.Linear(3, 4)
    before = weights_digest(layer)
    layer.weight.data = layer.weight.data[:, [1, 0, 2]]
    assert weights_digest(layer) != before


@pytest.mark.parametrize("name", ["gemma3", "mllama"])
def test_conversations_go_to_a_processor_that_wants_pictures_by_prompt(name):
    guard = Guard(tiny(name)[0], PROCESSORS[name](), None)
    conversations = [[{"role": "user", "content": [{"type": "image", "image": picture}]}] for picture in PICTURES]
    batch = guard.inputs(messages=conversations)
    singles = [guard.inputs(messages=conversation) for conversation in conversations]
    for row, single in enumerate(singles):
        assert torch.equal(batch["pixel_values"][row], single["pixel_values"][0])


def test_a_processor_that_takes_a_flat_list_gets_one(guard, monkeypatch):
    kind, asked = type(guard.processor), []
    process = kind.__call__

    def watch(processor, images=None, text=None, **options):
        asked.append(images)
        return process(processor, images=images, text=text, **options)

    monkeypatch.setattr(kind, "__call__", watch)
    conversation = [{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}]
    guard.inputs(messages=[conversation, conversation])
    assert [[type(picture) for picture in images] for images in asked] == [[Image.Image, Image.Image]]


def test_what_a_processor_refuses_either_way_ends_in_its_message(guard):
    conversation = [{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}]
    with pytest.raises(InputError, match="not a valid TruncationStrategy"):
        guard.inputs(messages=[conversation, conversation], truncation="nothing")
