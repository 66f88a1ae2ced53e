"""What the core finds in models whose encoder reads the image alone, and whose decoder names its parts otherwise."""

from __future__ import annotations

import pytest
from versions import has_interface, skip, specimen_of

from lvlm_guard import anatomy
from lvlm_guard.forward.interventions.attention_layers import find_attention
from lvlm_guard.forward.interventions.head_paths import find_path

HEADS = {
    "pix2struct": ["Pix2StructLayerNorm", "Linear"],
    "pp_formulanet": ["LayerNorm", "Linear"],
    "vision-encoder-decoder": ["BertOnlyMLMHead"],
}


@pytest.mark.parametrize("name", HEADS)
def test_the_encoder_is_the_tower_and_the_decoder_has_layers_attention_and_a_head(name):
    model = specimen_of(name).model
    tower, layers, path = anatomy.vision_layers(model), anatomy.decoder_layers(model), find_path(model)
    assert anatomy.encodes_images_alone(model)
    assert (len(tower), len(layers)) == (2, 4)
    assert not set(tower) & set(layers)
    if not has_interface(getattr(model, "decoder", model)):
        skip("attention of this type past its own interface")
    assert path is not None
    assert [type(part).__name__ for part in (*(part.part for part in path.before), path.head)] == HEADS[name]
    reaches = {(place.layer, place.reach) for place in find_attention(model).values()}
    assert reaches == {(layer, reach) for layer in range(4) for reach in ("own", "across")}


@pytest.mark.parametrize("name", ["florence2", "llava", "udop"])
def test_encoders_that_read_text_too_are_told_apart(name):
    assert not anatomy.encodes_images_alone(specimen_of(name).model)
