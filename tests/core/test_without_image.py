"""Rows without an image beside rows with one: each exactly what it is by itself."""

import pytest
import torch
from gold import SUPPRESSED, Against
from versions import specimen_of

from lvlm_guard import Guard, InputError, ModelRefused, ModeRefused, StrategyRefused
from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import IMAGE_TOKEN
from lvlm_guard.testing.zoo.prompts import joined

SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED, "pad_token_id": 0}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "several": {"num_beams": 2, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 1},
}


def text_only(inputs):
    """The prompts of a batch with text in place of the image."""
    ids = inputs["input_ids"].clone()
    ids[ids == IMAGE_TOKEN] = 7
    ids[(ids == 102) | (ids == 103)] = 8
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def scene(request):
    """Row 1 of three has no image."""
    model, inputs = tiny(request.param, batch=3)
    without = text_only(inputs)
    mixed = {name: value for name, value in inputs.items() if value.shape[:2] == inputs["input_ids"].shape}
    for name, value in mixed.items():
        mixed[name] = value.clone()
        mixed[name][1] = without[name][1] if name in without else 0
    images = {name: value for name, value in inputs.items() if name not in mixed}
    per_row = {name: value.unflatten(0, (3, -1))[[0, 2]].flatten(0, 1) for name, value in images.items()}
    return model, {**mixed, **per_row}, without


def rows_apart(model, guard, mixed, without, settings):
    tokens = {name: value for name, value in mixed.items() if value.shape[:2] == mixed["input_ids"].shape}
    images = {name: value for name, value in mixed.items() if name not in tokens}
    alone = []
    for row, image in ((0, 0), (2, 1)):
        own = {name: value.unflatten(0, (2, -1))[image] for name, value in images.items()}
        alone.append(guard.generate(**{name: value[[row]] for name, value in tokens.items()}, **own, **settings))
    plain = model.generate(**{name: value[[1]] for name, value in without.items()}, **settings)
    return torch.cat([alone[0], plain, alone[1]])


@pytest.mark.parametrize("mode", MODES)
def test_each_row_is_what_it_is_alone(scene, mode):
    model, mixed, without = scene
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    settings = SETTINGS | MODES[mode]
    output = guard.generate(**mixed, **settings)
    assert torch.equal(output, rows_apart(model, guard, mixed, without, settings))
    assert not torch.equal(output, model.generate(**mixed, **settings)), "no power"
    assert guard.report.strategies[0].had_effect


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 1, "num_return_sequences": 2}])
def test_the_report_names_rows_and_requests_of_the_whole_batch(scene, settings):
    model, mixed, _ = scene
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    output, report = guard.generate_with_report(**mixed, **(SETTINGS | settings))
    copies = settings.get("num_return_sequences", 1)
    assert [entry.row for entry in report.requests] == list(range(len(output)))
    assert [entry.request for entry in report.requests] == [row // copies for row in range(3 * copies)]
    assert [bool(entry.changes) for entry in report.requests][copies : 2 * copies] == [False] * copies
    start = mixed["input_ids"].shape[1]
    for entry in report.requests:
        for change in entry.changes:
            assert change.guarded in {int(output[entry.row, start + change.position]), *SUPPRESSED}
    assert any(entry.changes for entry in report.requests), "no power"


def test_a_batch_without_any_image_is_plain(scene):
    model, _, without = scene
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    output = guard.generate(**without, **SETTINGS, return_dict_in_generate=True, output_logits=True)
    plain = model.generate(**without, **SETTINGS, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(torch.stack(output.logits), torch.stack(plain.logits))
    assert guard.report.strategies == ()


def test_without_the_option_it_is_refused_as_ever(scene):
    model, _, without = scene
    with pytest.raises(StrategyRefused, match="needs an image"):
        Guard(model, None, [Against("blind")]).generate(**without, **SETTINGS)


@pytest.mark.parametrize("argument", [
    {"return_dict_in_generate": True}, {"logits_processor": [lambda ids, scores: scores]}, {"streamer": object()},
    {"prefix_allowed_tokens_fn": lambda row, ids: [5]},
])  # fmt: skip
def test_what_works_on_the_whole_batch_is_refused_by_name(scene, argument):
    model, mixed, _ = scene
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    with pytest.raises(ModeRefused, match=next(iter(argument))):
        guard.generate(**mixed, **SETTINGS, **argument)


def test_as_many_images_as_rows_are_refused_because_nobody_knows_whose_they_are():
    model, inputs = tiny("llava", batch=2)
    mixed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    mixed["input_ids"][1] = text_only(inputs)["input_ids"][1]
    with pytest.raises(InputError, match="Only rows 0 of the batch have an image"):
        Guard(model, None, [Against("noised")], without_image="plain").generate(**mixed, **SETTINGS)


@pytest.mark.parametrize("images", [(0, 1, 3), (0, 1, 2, 1)])
@pytest.mark.parametrize("kind", ["noised", "blind"])
@pytest.mark.parametrize("name", ["internvl", "idefics2", "qwen2_vl"])
def test_rows_with_none_one_and_several_images_are_what_they_are_alone(name, kind, images):
    """As many images as rows and more, on axes of images and of rows, and of several sizes where a model takes them."""
    specimen = specimen_of(name)
    rows = [specimen.row(3 + seed, seed, count) for seed, count in enumerate(images)]
    if name == "qwen2_vl":
        rows[1] |= {"pixel_values": rows[1]["pixel_values"].repeat(2, 1), "image_grid_thw": torch.tensor([[1, 8, 4]])}
        rows[1] = specimen.complete(
            torch.cat([rows[1]["input_ids"][:, :3], torch.full((1, 4), IMAGE_TOKEN), rows[1]["input_ids"][:, 3:]], 1),
            {key: rows[1][key] for key in ("pixel_values", "image_grid_thw")},
        )
    guard = Guard(specimen.model, specimen.processor, [Against(kind)], without_image="plain")
    output = guard.generate(**joined(rows), **SETTINGS)
    tokens = SETTINGS["max_new_tokens"]
    alone = [guard.generate(**row, **SETTINGS)[0, -tokens:] for row in rows]
    assert torch.equal(output[:, -tokens:], torch.stack(alone))
    main = specimen.model.generate(**joined(rows), **SETTINGS)
    assert kind == "noised" or not torch.equal(output, main), "no power"


def test_masking_needs_an_image_in_the_prompt_and_not_beside_it():
    specimen = specimen_of("idefics")  # its placeholder only marks the place: the image is looked at beside the prompt
    with pytest.raises(ModelRefused, match="does not place images among the prompt tokens"):
        Guard(specimen.model, specimen.processor, [Against("masked")]).generate(**specimen.row(), max_new_tokens=1)
