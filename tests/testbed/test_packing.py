"""Packing must change the cost of training and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lvlm_guard.testbed.architectures import llava, qwen2_vl
from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.picture import pixel_batch
from lvlm_guard.testbed.training.curriculum import layout, lesson_rows, lesson_scenes
from lvlm_guard.testbed.training.language_stage import LanguageStage, packed_logits
from lvlm_guard.testbed.training.packing import IGNORED, DialogueTurn, Packed, TrainingRow, pack


def _messages(row: TrainingRow, turn: DialogueTurn) -> list[dict[str, object]]:
    picture = [{"type": "image"}] if row.image else []
    asked = [{"role": "user", "content": [*picture, {"type": "text", "text": turn.prompt}]}]
    if row.system:
        asked.insert(0, {"role": "system", "content": [{"type": "text", "text": row.system}]})
    return asked


def _llava():
    return llava.LLAVA, llava.build_config(hidden=64, layers=2, heads=1, tower_layers=1)


def _qwen2_vl():
    return qwen2_vl.QWEN2_VL, qwen2_vl.build_config(
        hidden=64, layers=2, heads=4, groups=2, vision_width=32, tower_layers=2
    )


@pytest.fixture(scope="module", params=[_llava, _qwen2_vl], ids=["llava", "qwen2_vl"])
def built(request):
    architecture, config = request.param()
    return architecture, architecture.build_model(config, 3).eval()


@torch.no_grad()
@pytest.mark.parametrize("progress", [0.3, 0.9])
def test_packed_answer_logits_equal_those_of_a_question_asked_alone(built, progress: float) -> None:
    architecture, model = built
    processor, slots = architecture.build_processor(), layout(architecture.span)
    batch = lesson_scenes(progress, 8, seed=5, start=0)
    rows = lesson_rows(batch, progress, np.random.default_rng(0))
    shapes = {(row.image, bool(row.system)) for row in rows}
    assert shapes >= ({(True, False), (True, True)} if progress < 0.5 else {(True, False), (False, False)})
    together, packed = _together(architecture, model, batch, rows)
    model.set_attn_implementation("sdpa")
    for at, (scene, row) in enumerate(zip(batch, rows, strict=True)):
        for slot, turn in enumerate(row.turns):
            prompt = processor.apply_chat_template(_messages(row, turn), add_generation_prompt=True)
            text = f"{prompt} {turn.answer}"
            inputs = processor(text=[text], images=[scene.picture] if row.image else None, return_tensors="pt")
            alone = model(**inputs).logits[0]
            start = slots.start(slot)
            said = (packed.targets[at, start : start + slots.room(slot)] != IGNORED).nonzero().flatten() + start
            assert torch.allclose(together[at, said], alone[-len(said) :], atol=2e-4)


def _together(architecture: Architecture, model, batch, rows) -> tuple[torch.Tensor, Packed]:
    """Logits of the packed rows, as training computes them."""
    stage = LanguageStage(architecture, model, len(batch), 0, 100)
    packed = pack(rows, stage.layout, architecture.span)
    image = stage.image(pixel_batch(batch))
    return packed_logits(model, image, packed, stage.layout, architecture.span), packed


def test_pack_refuses_a_turn_that_does_not_fit() -> None:
    span = llava.SPAN
    with pytest.raises(ValueError, match="room"):
        pack([TrainingRow([DialogueTurn("describe this image .", "red " * 60, 1.0)])], layout(span), span)
