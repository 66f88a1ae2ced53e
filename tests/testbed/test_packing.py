"""Packing must change the cost of training and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lvlm_guard.testbed.lessons import layout, lesson_rows, lesson_scenes
from lvlm_guard.testbed.model import build_config, build_model, build_processor
from lvlm_guard.testbed.packing import IGNORED, Row, Turn, pack
from lvlm_guard.testbed.speaking import SpeakingStage, image_features, packed_logits
from lvlm_guard.testbed.tower import pixel_batch

LAYOUT = layout()


def _messages(row: Row, turn: Turn) -> list[dict[str, object]]:
    picture = [{"type": "image"}] if row.image else []
    asked = [{"role": "user", "content": [*picture, {"type": "text", "text": turn.prompt}]}]
    if row.system:
        asked.insert(0, {"role": "system", "content": [{"type": "text", "text": row.system}]})
    return asked


@pytest.fixture(scope="module")
def model():
    return build_model(build_config(hidden=64, layers=2, heads=1, tower_layers=1), seed=3).eval()


@torch.no_grad()
@pytest.mark.parametrize("progress", [0.3, 0.9])
def test_packed_answer_logits_equal_those_of_a_question_asked_alone(model, progress: float) -> None:
    processor = build_processor()
    batch = lesson_scenes(progress, 8, seed=5, start=0)
    rows = lesson_rows(batch, progress, np.random.default_rng(0))
    shapes = {(row.image, bool(row.system)) for row in rows}
    assert shapes >= ({(True, False), (True, True)} if progress < 0.5 else {(True, False), (False, False)})
    packed = pack(rows, LAYOUT)
    SpeakingStage(model, 8, 0, 100)
    together = packed_logits(model, image_features(model, pixel_batch(batch)), packed, LAYOUT)
    model.model.language_model.set_attn_implementation("sdpa")
    for at, (scene, row) in enumerate(zip(batch, rows, strict=True)):
        for slot, turn in enumerate(row.turns):
            prompt = processor.apply_chat_template(_messages(row, turn), add_generation_prompt=True)
            text = f"{prompt} {turn.answer}"
            inputs = processor(text=[text], images=[scene.picture] if row.image else None, return_tensors="pt")
            alone = model(**inputs).logits[0]
            start = LAYOUT.start(slot)
            said = (packed.targets[at, start : start + LAYOUT.room(slot)] != IGNORED).nonzero().flatten() + start
            assert torch.allclose(together[at, said], alone[-len(said) :], atol=2e-4)


def test_pack_refuses_a_turn_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="room"):
        pack([Row([Turn("describe this image .", "red " * 60, 1.0)])], LAYOUT)
