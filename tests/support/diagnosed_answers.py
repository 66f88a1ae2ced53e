"""A diagnosis of an answer made by hand, with a model's text that means harm."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from lvlm_guard.diagnosis import AnswerDiagnosis, AnswerMaps, Cause, WordDiagnosis

NASTY = "<script>alert(1)</script>\u202e"
TEXT = f"a red mug {NASTY} =1+1"


def make_word(text: str, start: int, **changes: Any) -> WordDiagnosis:
    """Return a word of the answer that is not doubtful."""
    return WordDiagnosis(
        **{
            "text": text, "span": (start, start + len(text)), "first_token": 0, "tokens": 1, "level": "object",
            "question": "Is there a mug?", "doubt": 0.25, "by": "margin", "is_doubtful": False, "margin": 1.1, "log_probability": -0.5,
            "entropy": 0.7, "max_probability": 0.6, "choice": "mug", "is_choice": True, "image_free_log_probability": -2.5,
            "image_free_choice": "pan", "is_image_free_choice": False, "image_attention": 0.4, **changes,
        }
    )  # fmt: skip


def make_diagnosis(**changes: Any) -> AnswerDiagnosis:
    """Return a diagnosis of three words, one of them doubtful and with maps."""
    causes = (Cause("prior", f"Without the picture {NASTY}."), Cause("decoding", "It was not the likeliest."))
    words = (
        make_word("a", 0, level=None, question=None, by="entropy", margin=None, doubt=0.5),
        make_word(
            "red", 2, level="attribute", doubt=0.9371, is_doubtful=True, margin=-2.7, causes=causes, evidence=-0.8
        ),
        make_word("mug", 6),
    )
    generator = torch.Generator().manual_seed(0)
    maps = AnswerMaps(
        (2, 3),
        tuple(tuple(torch.rand(4, generator=generator).tolist()) for _ in range(3)),
        {1: (0.1, 0.2, 0.3, 0.05, 0.15, 0.2)},
        {1: ((0.1,) * 6, (0.2, 0.9, 0.1, 0.1, 0.1, 0.1))},
        (2, 2),
        {1: (1.5, -0.5, 0.0, 0.25)},
    )
    values: dict[str, Any] = {
        "prompt": f"What is there? {NASTY}", "answer": TEXT, "answered_by": "model", "model": "toy", "stack": ("vcd",), "threshold": 0.5,
        "words": words, "maps": maps, "partial": ("No logit lens: none.",), "cost": {"tokens": 3}, "origin": {"transformers": "5"},
        "pictures": (Image.new("RGB", (60, 40), "teal"),),
    }  # fmt: skip
    return AnswerDiagnosis(**{**values, **changes})
