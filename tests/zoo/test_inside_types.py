"""What is done inside the layers of types that are built otherwise, as the probe of each judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from versions import KEPT, skip, specimen_of

from lvlm_guard import Branch, Contrast, Guard, HiddenEdit, hookimpl
from lvlm_guard.testing.zoo import mechanisms
from lvlm_guard.testing.zoo.probing import TypeProbe, probe_type
from lvlm_guard.testing.zoo.prompts import disturbed, noised
from lvlm_guard.testing.zoo.reference import follow, outputs_changed
from lvlm_guard.testing.zoo.shrinking import SPECIAL

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
    "pix2struct": ("vision",),
    "pp_formulanet": ("vision",),
    "vision-encoder-decoder": ("vision",),
    "qwen3_5": ("attention",),
    "t5gemma2": ("attention",),
    "udop": ("hidden", "readouts"),
    "video_llava": ("vision",),
}
"""Attention to an encoder apart from the decoder's own or with it, in some layers alone; layers in an encoder of the text model, several residual streams, norms under other names, none, scaled states; towers beside
the module that decodes, that are its encoder, under other names, without attention, in stages, or beside another for videos."""


@pytest.mark.parametrize("name", INSIDE)
def test_layers_are_edited_and_read_exactly(name):
    specimen_of(name)
    cells = probe_type(name, INSIDE[name])
    if KEPT in cells[INSIDE[name][-1]].error:
        skip(f"a {name} whose tower keeps layers before hooks see them")
    reference = cells.get("attention", cells[INSIDE[name][0]]).reference
    if (name, reference) == ("git", "cached"):
        skip("a git whose own cache changes what it decodes")
    assert reference == "recompute"
    assert {mechanism: cell.status for mechanism, cell in cells.items()} == dict.fromkeys(INSIDE[name], "exact"), cells


def test_attention_to_an_encoder_that_reads_the_image_alone_is_edited_without_an_image_in_the_prompt():
    """Where every key is the image's, scores that are multiplied are those of a multiplied query."""
    probe = TypeProbe(specimen_of("pp_formulanet"))
    steps, _ = probe.run(mechanisms.SCALED)
    tokens = torch.tensor([steps[-1].prefix], dtype=torch.long)
    model, row = probe.specimen.model, probe.rows[0]
    queries = [layer.encoder_attn.q_proj for layer in model.model.decoder.layers[slice(*mechanisms.EDITED)]]
    with outputs_changed(queries, lambda query: mechanisms.FAVOUR * query):
        wanted = follow(model, row, tokens, use_cache=False)[:, 0]
    seen = torch.stack([step.scores for step in steps])[:, : SPECIAL.start]
    assert (wanted - follow(model, row, tokens, use_cache=False)[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(seen, wanted[:, : SPECIAL.start], rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class TurnsTower:
    name: ClassVar[str] = "turns-tower"
    edited: tuple[str, ...]

    @hookimpl
    def hidden(self, gen):
        return [
            HiddenEdit("residual", lambda hidden, _: hidden.flip(-1), tower="vision", branch=key) for key in self.edited
        ]

    @hookimpl
    def branches(self, gen):
        return [Branch("noise", pixels=disturbed)]

    @hookimpl
    def terms(self, gen):
        return [Contrast("noise", 1.0)]


def test_a_tower_beside_the_module_that_decodes_is_edited_for_main_and_branch_apart():
    specimen = specimen_of("blip-2")
    row, layers = specimen.row(), specimen.model.vision_model.encoder.layers
    settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def plain(inputs, *, turned):
        with outputs_changed(layers if turned else [], lambda hidden: hidden.flip(-1)):
            return specimen.model.generate(**inputs, **settings).logits[0]

    noisy = noised(specimen, row)
    for edited in (("main",), ("noise",), ("main", "noise")):
        output = Guard(specimen.model, None, [TurnsTower(edited)]).generate(**row, **settings)
        wanted = 2 * plain(row, turned="main" in edited) - plain(noisy, turned="noise" in edited)
        assert (wanted - 2 * plain(row, turned=False) + plain(noisy, turned=False)).abs().max() > 0.02
        torch.testing.assert_close(output.logits[0], wanted, rtol=1e-4, atol=1e-4)
