"""Images that no token of the config stands for: beside the prompt, in an encoder, or at places that another input marks."""

import pytest
import torch
from gold import WEIGHT, Against
from versions import specimen_of

from lvlm_guard import Guard, ModelRefused, ProcessorNeeded, StrategyRefused
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.fences import find_fences, find_placeholder
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch, Insert
from lvlm_guard.testing.zoo.naming import NamedTokens
from lvlm_guard.testing.zoo.probing import TypeProbe

REMOVED = Branch("removed", image="removed")
LONGER = Branch("longer", tokens=(Insert((7, 9), "after_image"),))
SETTINGS = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def make_request(name, batch=None, processor="own"):
    specimen = specimen_of(name)
    inputs = specimen.row() if batch is None else batch(specimen)
    processor = specimen.processor if processor == "own" else processor
    return Request(inputs, {}, specimen.model.config, processor)


@pytest.mark.parametrize(
    ("name", "mechanisms"),
    [
        ("git", ("removal", "longer")),  # the image stands before the prompt, and in the cache
        ("idefics", ("removal", "longer", "several images")),  # beside the prompt; no prompt without pixels
        ("kosmos-2.5", ("noise", "removal", "longer")),  # where a mask says; patches begin with their places
        ("blip-2", ("removal", "batch removal")),  # generate runs on pixels only
        ("blip", ("removal", "longer")),  # and decodes another prompt than it is given
        ("pix2struct", ("noise", "replacement", "longer")),  # the prompt is the decoder's
    ],
)
def test_branches_are_exact_where_no_token_of_the_config_stands_for_an_image(name, mechanisms):
    probe = TypeProbe(specimen_of(name))
    cells = {mechanism: probe.cell(mechanism) for mechanism in mechanisms}
    assert {mechanism: cell.status for mechanism, cell in cells.items()} == dict.fromkeys(mechanisms, "exact"), cells


@pytest.mark.parametrize("name", ["git", "udop", "idefics", "kosmos-2"])
@pytest.mark.parametrize("kind", ["blind", "longer"])
def test_without_a_processor_nobody_knows_what_it_wrote(name, kind):
    specimen = specimen_of(name)
    with pytest.raises(ProcessorNeeded, match=r"its processor may: Guard\(model, processor\)"):
        Guard(specimen.model, None, [Against(kind)]).generate(**specimen.row(), max_new_tokens=1)


def test_the_inputs_of_text_go_with_the_prompt():
    request = make_request("udop")
    boxes = torch.arange(8.0)[None, :, None].expand(1, 8, 4).clone()
    request = Request({**request.inputs, "bbox": boxes}, {}, request.config, request.processor)
    built = build_branch_inputs(request, LONGER, None)
    assert built["input_ids"][0, :2].tolist() == [7, 9]
    assert built["bbox"][0, :, 0].tolist() == [0, 0, *range(8)]
    assert "pixel_values" not in build_branch_inputs(request, REMOVED, None)


def test_text_goes_behind_the_token_that_a_prompt_begins_with():
    specimen = specimen_of("git")
    row = specimen.row()
    row["input_ids"][0, 0] = specimen.model.config.get_text_config(decoder=True).bos_token_id
    built = build_branch_inputs(Request(row, {}, specimen.model.config, specimen.processor), LONGER, None)
    assert built["input_ids"][0, :4].tolist() == [int(row["input_ids"][0, 0]), 7, 9, int(row["input_ids"][0, 1])]


def test_a_mask_of_places_that_marks_fences_needs_no_processor():
    request = make_request("kosmos-2.5", processor=None)
    places = request.inputs["image_embeds_position_mask"].long()
    places[request.input_ids == 102] = places[request.input_ids == 103] = -1
    request = Request({**request.inputs, "image_embeds_position_mask": places}, {}, request.config)
    built = build_branch_inputs(request, REMOVED, None)
    assert not set(built["input_ids"][0].tolist()) & {100, 102, 103}
    assert "image_embeds_position_mask" not in built
    longer = build_branch_inputs(request, LONGER, None)
    assert longer["image_embeds_position_mask"][0].tolist() == [0, 0, -1, 1, 1, 1, 1, -1, *[0] * 8]


def test_places_and_padding_of_flattened_patches_stay_as_they_are():
    request = make_request("kosmos-2.5")
    patches = request.inputs["flattened_patches"]
    patches[0, 12:] = 0
    branch = Branch("noised", pixels=lambda pixels, _: pixels + 1)
    edited = build_branch_inputs(request, branch, None)["flattened_patches"]
    assert torch.equal(edited[..., :2], patches[..., :2])
    assert torch.equal(edited[0, 12:], patches[0, 12:])
    assert torch.equal(edited[0, :12, 2:], patches[0, :12, 2:] + 1)


def test_an_encoder_of_images_alone_has_nothing_to_read_without_one():
    specimen = specimen_of("vision-encoder-decoder")
    with pytest.raises(ModelRefused, match="the encoder of this model reads nothing else"):
        Guard(specimen.model, None, [Against("blind")]).generate(**specimen.row(), max_new_tokens=1)


@pytest.mark.parametrize("name", ["vision-encoder-decoder", "pix2struct"])
def test_pixels_alone_are_enough_for_an_encoder_of_images(name):
    specimen = specimen_of(name)
    pixels = {key: value for key, value in specimen.row().items() if key != "decoder_input_ids"}
    got = Guard(specimen.model, None, [Against("noised")]).generate(**pixels, **SETTINGS)
    main = specimen.model.generate(**pixels, **SETTINGS).logits[0]
    (key,) = pixels
    changed = pixels[key].clone()
    start = 2 if key == "flattened_patches" else 0
    changed[..., start:] = torch.tanh(3 * changed[..., start:]) + 0.7
    branch = specimen.model.generate(**{key: changed}, **SETTINGS).logits[0]
    assert float((got.logits[0] - ((1 + WEIGHT) * main - WEIGHT * branch)).abs().max()) <= 1e-4
    assert float((main - branch).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["git", "blip", "blip-2"])
@pytest.mark.parametrize("rows", [1, 2])
def test_pictures_are_described_without_a_prompt(name, rows):
    specimen = specimen_of(name)
    specimen.model.config.get_text_config().eos_token_id = 2  # BLIP writes it behind the token that a text begins with
    pixels = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    got = Guard(specimen.model, None, [Against("noised")], without_image="plain").generate(
        pixel_values=pixels, **SETTINGS
    )
    main = specimen.model.generate(pixel_values=pixels, **SETTINGS).logits[0]
    branch = specimen.model.generate(pixel_values=torch.tanh(3 * pixels) + 0.7, **SETTINGS).logits[0]
    assert float((got.logits[0] - ((1 + WEIGHT) * main - WEIGHT * branch)).abs().max()) <= 1e-4
    assert float((main - branch).abs().max()) > 0.1


def test_the_first_argument_of_generate_is_what_the_model_calls_its_main_input():
    specimen = specimen_of("vision-encoder-decoder")
    pixels = specimen.row()["pixel_values"]
    guard = Guard(specimen.model, None, [Against("noised")])
    assert torch.equal(guard.generate(pixels, max_new_tokens=3), guard.generate(pixel_values=pixels, max_new_tokens=3))
    assert torch.equal(
        guard.using(None).generate(pixels, max_new_tokens=3), specimen.model.generate(pixels, max_new_tokens=3)
    )


def test_text_that_is_embedded_in_a_way_of_its_own_is_refused(monkeypatch):
    specimen = specimen_of("blip-2")
    embed = specimen.model.get_input_embeddings()
    monkeypatch.setattr(specimen.model, "get_input_embeddings", lambda: lambda ids: 2 * embed(ids))
    with pytest.raises(ModelRefused, match="embeds the text of a prompt in a way of its own"):
        Guard(specimen.model, None, [Against("blind")]).generate(**specimen.row(), max_new_tokens=1)


def test_a_row_without_a_placeholder_is_named_with_a_remedy():
    specimen = specimen_of("internvl")
    rows = [specimen.row(), specimen.row(text=12, images=0)]
    length = max(row["input_ids"].shape[1] for row in rows)
    ids = [torch.nn.functional.pad(row["input_ids"], (length - row["input_ids"].shape[1], 0)) for row in rows]
    batch = {"input_ids": torch.cat(ids), "attention_mask": (torch.cat(ids) != 0).long()}
    batch["pixel_values"] = rows[0]["pixel_values"]
    with pytest.raises(StrategyRefused, match=r"row 1 has no image placeholder. Guard\(..., without_image='plain'\)"):
        Guard(specimen.model, None, [Against("blind")]).generate(**batch, max_new_tokens=1)


def test_special_tokens_that_speak_of_images_belong_to_them():
    words = {"<fake_token_around_image>": 120, "<end_of_utterance>": 121, "<image>": 100, "<row>": 122}
    fences = find_fences(specimen_of("idefics").model.config, NamedTokens(words, {"image_token": "<image>"}))
    assert 120 in fences.named
    assert not fences.named & {100, 121, 122}  # the placeholder stands for the image; the others may be text


def test_a_placeholder_that_begins_the_prompt_too_stays_there():
    """The processor of Kosmos-2.5 writes the token that every prompt begins with in place of the image."""
    specimen = specimen_of("kosmos-2.5")
    words = {"<s>": 100, "<image>": 102, "</image>": 103}
    processor = NamedTokens(
        words, {"image_token": "<s>", "image_start_token": "<image>", "image_end_token": "</image>"}
    )
    ids = torch.tensor([[100, 102, 100, 100, 100, 100, 103, 8, 9]])
    inputs = {**specimen.row(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["image_embeds_position_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0]])
    built = build_branch_inputs(Request(inputs, {}, specimen.model.config, processor), REMOVED, None)
    assert built["input_ids"].tolist() == [[100, 8, 9]]


def test_a_placeholder_is_named_by_the_config_before_the_processor():
    processor = NamedTokens({"<image>": 120}, {"image_token": "<image>"})
    assert find_placeholder(specimen_of("git").model.config, processor) == 120
    assert find_placeholder(specimen_of("internvl").model.config, processor) == 100
    assert find_placeholder(specimen_of("git").model.config) is None
