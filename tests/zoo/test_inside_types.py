"""What is done inside the layers of types that are built otherwise, as the probe of each judges it."""

from __future__ import annotations

import pytest

from lvlm_guard.testing.zoo.building import TYPES
from lvlm_guard.testing.zoo.probing import probe_type

INSIDE = {
    "blip": ("hidden", "readouts", "vision"),
    "blip-2": ("vision",),
    "git": ("vision",),
    "glm5_next": ("hidden", "readouts"),
    "inkling_mm_model": ("vision",),
    "kosmos-2": ("vision",),
    "lighton_ocr": ("vision",),
    "nemotron_h_omni": ("readouts",),
    "qwen4_exp": ("readouts",),
    "florence2": ("attention", "readouts", "vision"),
    "qwen3_5": ("attention",),
    "t5gemma2": ("attention",),
    "udop": ("hidden", "readouts"),
    "video_llava": ("vision",),
}
"""Attention to an encoder apart from the decoder's own or with it, in some layers alone; layers in an encoder of the text model, several residual streams, norms under other names, none, scaled states; towers beside
the module that decodes, under other names, without attention, in stages, or beside another for videos."""


@pytest.mark.parametrize("name", INSIDE)
def test_layers_are_edited_and_read_exactly(name):
    if name not in TYPES:
        pytest.skip("this version of transformers has no such type")
    cells = probe_type(name, INSIDE[name])
    assert cells.get("attention", cells[INSIDE[name][0]]).reference == "recompute"
    assert {mechanism: cell.status for mechanism, cell in cells.items()} == dict.fromkeys(INSIDE[name], "exact"), cells
