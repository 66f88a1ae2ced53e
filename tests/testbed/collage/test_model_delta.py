"""The delta: written, read and merged, it gives the logits of the model that was taught; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from collage_stand_ins import tiny_model

from lvlm_guard.testbed import TestbedError
from lvlm_guard.testbed.collage.delta import Delta, apply_delta, read_delta
from lvlm_guard.testbed.collage.training.rows import PackedTurn, Packer
from lvlm_guard.testbed.collage.training.student import Student


def taught_student():
    model, processor = tiny_model()
    student = Student(model, rank=4, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.taught().values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
            weight.copy_(weight.half().float())
    return student, processor


def test_merged_weights_answer_as_the_student_does(tmp_path):
    student, processor = taught_student()
    student.delta().write(tmp_path / "delta.safetensors")
    model, _ = tiny_model()
    rows = Packer(processor, 49).pack(
        [[PackedTurn("Is there a dog?", "Yes"), PackedTurn("Describe the picture.", "A dog.")]]
    )
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        features = model.model.vision_tower.features(pixels)
        expected = student.hidden(rows, features)
        before = hidden_of(model, rows, pixels)
        apply_delta(model, read_delta(tmp_path / "delta.safetensors"))
        after = hidden_of(model, rows, pixels)
    seen = rows.blocks >= 0
    torch.testing.assert_close(after[seen], expected[seen], atol=1e-4, rtol=0)
    assert (after - before)[seen].abs().max() > 0.1


def hidden_of(model, rows, pixels):
    image = model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)
    embedded = model.model.language_model.embed_tokens(rows.ids).masked_scatter(rows.image[..., None], image)
    mask = torch.zeros(rows.visible().shape).masked_fill(~rows.visible(), torch.finfo(torch.float32).min)
    return model.model.language_model(
        inputs_embeds=embedded, position_ids=rows.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state


def test_every_linear_layer_of_the_language_model_is_changed():
    student, _ = taught_student()
    model, _ = tiny_model()
    linear = {name for name, part in model.model.language_model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert {name.rpartition(".")[0] for name in student.delta().changes} == linear


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_file_that_is_no_delta_is_refused(tmp_path, content):
    (tmp_path / "delta.safetensors").write_bytes(content)
    with pytest.raises(TestbedError, match="cannot be read as a delta"):
        read_delta(tmp_path / "delta.safetensors")


def test_a_delta_of_another_model_is_refused():
    student, _ = taught_student()
    delta = student.delta()
    model, _ = tiny_model()
    name = next(name for name in delta.changes if name.endswith(".A"))
    wrong = {**delta.changes, name: delta.changes[name][:, :-1]}
    with pytest.raises(TestbedError, match="made for another"):
        apply_delta(model, Delta(wrong, delta.projector, delta.places, delta.scale))
    with pytest.raises(TestbedError, match="made for another"):
        apply_delta(model, Delta(delta.changes, delta.projector, delta.places[:-1], delta.scale))
