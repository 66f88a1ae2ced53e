"""Packed rows: every question is answered as if it were asked alone, by the model's own forward."""

from __future__ import annotations

import pytest
import torch
from collage_stand_ins import tiny_model
from PIL import Image

from lvlm_guard.testbed.collage.card import Reader
from lvlm_guard.testbed.collage.training.rows import IGNORED, PackedTurn, Packer
from lvlm_guard.testbed.collage.training.student import Student, gather

QUESTIONS = ("Is there a dog?", "What colour is the bus?", "How many bees are there in the picture?")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def pictures(count):
    noise = torch.randint(0, 256, (count, 224, 224, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in noise]


def ask_alone(model, processor, text, image):
    content = [*([{"type": "image"}] if image is not None else []), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = {} if image is None else {"images": [image]}
    inputs = processor(text=[prompt], return_tensors="pt", **images)
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


@pytest.mark.parametrize("blind", [False, True])
def test_a_packed_question_is_answered_as_if_it_were_asked_alone(tiny, blind):
    model, processor = tiny
    shown = pictures(2)
    reader, packer = Reader(model, processor), Packer(processor, 49)
    tokens = reader.features(shown)
    for at, image in enumerate(shown):
        rows = packer.pack([[PackedTurn(text, "") for text in QUESTIONS]], blind=blind)
        with torch.no_grad():
            packed = reader._logits(rows, None if blind else tokens[at])
        alone = torch.stack([ask_alone(model, processor, text, None if blind else image) for text in QUESTIONS])
        torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)
        assert (alone[0] - alone[1]).abs().max() > 0.1
    if not blind:
        other = torch.stack([ask_alone(model, processor, text, shown[0]) for text in QUESTIONS])
        assert (other - alone).abs().max() > 0.1


def test_an_answer_is_learnt_token_by_token_with_its_end(tiny):
    _, processor = tiny
    rows = Packer(processor, 49).pack(
        [[PackedTurn("Is it?", "No", 0.5), PackedTurn("What?", "Two", 1.0)], [PackedTurn("Why?", "So", 1.0)]]
    )
    tokenizer, end = processor.tokenizer, processor.tokenizer.eos_token_id
    learnt, targets, weights = gather(rows)
    expected = [
        *tokenizer("No")["input_ids"],
        end,
        *tokenizer("Two")["input_ids"],
        end,
        *tokenizer("So")["input_ids"],
        end,
    ]
    assert targets.tolist() == expected
    assert weights.tolist() == [0.5] * 3 + [1.0] * 7
    assert (rows.targets[1, rows.blocks[1] < 0] == IGNORED).all()
    answered = rows.ids[0][learnt[0]].tolist()
    assert answered[1:3] == tokenizer("No")["input_ids"]


def test_the_student_begins_as_the_model_and_leaves_the_language_model_alone_where_it_is_held():
    model, processor = tiny_model()
    packer = Packer(processor, 49)
    rows = packer.pack([[PackedTurn(text, "Yes") for text in QUESTIONS]])
    blind = packer.pack([[PackedTurn(text, "Yes") for text in QUESTIONS]], blind=True)
    reader = Reader(model, processor)
    tokens = reader.features(pictures(1))
    with torch.no_grad():
        before = reader._logits(rows, tokens[0])
        features = model.model.vision_tower.features(
            processor.image_processor(pictures(1), return_tensors="pt")["pixel_values"]
        )
        untouched = reader._logits(blind, None)
        student = Student(model, rank=4, dtype=torch.float32)
        after = student.logits(student.hidden(rows, features)[rows.targets >= 0])
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
        for name, weight in student.taught().items():
            if name.endswith("lora_B.default.weight"):
                weight.normal_(generator=torch.Generator().manual_seed(2))
        changed = student.logits(student.hidden(blind, None)[blind.targets >= 0])
        held = student.logits(student.untaught(blind)[blind.targets >= 0])
    assert (changed - untouched).abs().max() > 0.1
    torch.testing.assert_close(held, untouched, atol=1e-4, rtol=0)
    assert all(weight.requires_grad for weight in student.taught().values())
    assert any(name.endswith("lora_A.default.weight") for name in student.taught())


def test_what_is_lent_stands_in_for_the_picture():
    model, processor = tiny_model()
    rows = Packer(processor, 49).pack([[PackedTurn(text, "Yes") for text in QUESTIONS]])
    student = Student(model, rank=2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(6)
    features, others = (torch.randn(1, 49, student.places.shape[1], generator=generator) for _ in range(2))
    lent = torch.randn(1, 49, model.config.text_config.hidden_size, generator=generator)
    with torch.no_grad():
        whole = [student.hidden(rows, seen, lent, 1.0) for seen in (features, others)]
        half = [student.hidden(rows, seen, lent, 0.5) for seen in (features, others)]
        none = student.hidden(rows, features, lent, 0.0)
        torch.testing.assert_close(whole[0], whole[1], atol=1e-5, rtol=0)
        assert (half[0] - half[1]).abs().max() > 0.1
        torch.testing.assert_close(none, student.hidden(rows, features), atol=0, rtol=0)
        assert (none - whole[0]).abs().max() > 0.1
