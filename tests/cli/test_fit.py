"""`lvlm-guard fit`: what it writes, what it refuses, and what fitters find."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from lvlm_guard_steering import VTI, Nullu, vti_fitter
from lvlm_guard_steering.nullu_fitter import fit_nullu
from twin import Twin
from typer.testing import CliRunner

from lvlm_guard import Artefact, Guard, InputError, fitting, testbed
from lvlm_guard.cli import app, main
from lvlm_guard.fitting import Demonstration, compute_hidden_states, encode_answer
from lvlm_guard.request.images import generator_for
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testbed.world import language
from lvlm_guard.testbed.world.scenes import scenes
from lvlm_guard.testing import ARCHITECTURES, tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

FEW = 6
KINDS = ("adhh", "nullu", "vti")


@pytest.fixture(scope="module")
def model_and_processor():
    return testbed.load()


@pytest.fixture(scope="module")
def few():
    return build_demonstrations(FEW)


def fit(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def refused(monkeypatch, capsys, *arguments):
    """What main prints when the library refuses."""
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", "fit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def rows(tmp_path):
    """Rows of a file of demonstrations whose pictures lie beside it."""
    rows = []
    for number, demonstration in enumerate(build_demonstrations(3)):
        demonstration.picture.save(tmp_path / f"{number}.png")
        texts = {name: getattr(demonstration, name) for name in ("prompt", "correct", "hallucinated")}
        rows.append({"image": f"{number}.png", **texts})
    return rows


def written(folder, rows):
    path = folder / "demonstrations.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_fitted_on_the_bundled_scenes(tmp_path, model_and_processor, kind):
    out = tmp_path / f"{kind}.safetensors"
    result = fit(kind, "--model", "testbed", "--data", "testbed", "--count", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert f'name = "{kind}"' in result.stdout
    assert f"fit {kind}: 100%" in result.stderr
    artefact = Artefact.load(out, kind, model_and_processor[0].config)
    assert all(bool(tensor.isfinite().all()) for tensor in artefact.tensors.values())
    assert (artefact.manifest["model"], artefact.manifest["split"]) == ("testbed", "testbed train, seed 0")
    assert artefact.manifest["settings"]["demonstrations"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_file_of_demonstrations_gives_what_the_scenes_give(tmp_path, rows):
    options = ("nullu", "--model", "testbed", "--out")
    assert fit(*options, tmp_path / "a", "--data", written(tmp_path, rows)).exit_code == 0
    assert fit(*options, tmp_path / "b", "--data", "testbed", "--count", 3).exit_code == 0
    config = testbed.load()[0].config
    from_file, from_scenes = (Artefact.load(tmp_path / name, "nullu", config) for name in "ab")
    assert torch.equal(from_file["directions"], from_scenes["directions"])
    assert from_file.manifest["split"] == "demonstrations.jsonl"


def test_a_file_is_replaced_only_by_force(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.write_bytes(b"something else")
    options = ("nullu", "--model", "testbed", "--data", "testbed", "--count", 2, "--out", out)
    assert "exists" in refused(monkeypatch, capsys, *options)
    assert out.read_bytes() == b"something else"
    assert fit(*options, "--force").exit_code == 0
    assert out.read_bytes() != b"something else"


def test_lines_that_cannot_be_used_are_named_and_nothing_is_written(tmp_path, rows, monkeypatch, capsys):
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    bad = [
        "{",
        "[]",
        {**rows[0], "correct": 3, "prompt": " "},
        {**rows[0], "hallucinated": rows[0]["correct"]},
        {**rows[0], "image": "gone.png"},
        {**rows[0], "image": "torn.png"},
    ]
    path, out = written(tmp_path, [*rows, "", *bad]), tmp_path / "out"
    printed = refused(monkeypatch, capsys, "nullu", "--model", "testbed", "--data", path, "--out", out)
    for fault in (
        "line 5: not JSON",
        "line 6: an object is wanted, got list",
        "line 7: text is wanted for prompt, correct",
        "line 8: correct and hallucinated are the same",
    ):
        assert fault in printed
    assert "line 9: The picture" in printed
    assert "(1 more)" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vtj", "--data", "testbed"), "Did you mean 'vti'"),
        (("vti", "--data", "gone.jsonl"), "gone.jsonl cannot be read"),
        (("vti", "--data", "testbed", "--out", "no/such/folder/f"), "does not exist"),
        (("vti", "--data", "testbed", "--out", "."), "is a folder"),
        (("vti", "--data", "testbed", "--model", "./gone"), "no folder './gone'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_starts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    defaults = {"--model": "testbed", "--out": "out"}
    more = [word for name, value in defaults.items() if name not in arguments for word in (name, value)]
    assert message in refused(monkeypatch, capsys, *arguments, *more)
    assert list(tmp_path.iterdir()) == []


def test_too_few_or_too_many_demonstrations(tmp_path, rows, monkeypatch, capsys):
    options = ("nullu", "--model", "testbed", "--out", tmp_path / "out", "--data")
    assert "2 demonstrations or more, got 1" in refused(monkeypatch, capsys, *options, written(tmp_path, rows[:1]))
    assert "more than the 3" in refused(monkeypatch, capsys, *options, written(tmp_path, rows), "--count", 4)
    assert "holds no demonstrations" in refused(monkeypatch, capsys, *options, written(tmp_path, ["", " "]))


def test_captions_are_of_training_scenes_with_one_thing_invented():
    built = build_demonstrations(30)
    for demonstration, scene in zip(built, scenes("train", 30), strict=True):
        true = language.mentions(demonstration.correct)
        false = language.mentions(demonstration.hallucinated)
        assert {category for _, category in true} == scene.present
        assert len(set(false) - set(true)) == 1
        assert len(false) - len(true) in (0, 1)
    invented = [
        set(language.mentions(demonstration.hallucinated)) - set(language.mentions(demonstration.correct))
        for demonstration in built
    ]
    present = [scene.present for scene in scenes("train", 30)]
    kinds = [next(iter(mentions))[1] in scene for mentions, scene in zip(invented, present, strict=True)]
    assert 10 <= sum(kinds) < 30  # colours of what is there, and objects that are not
    assert build_demonstrations(30) != build_demonstrations(30, seed=1)


def test_an_answer_is_encoded_behind_its_prompt(model_and_processor, few):
    model, processor = model_and_processor
    batch, length = encode_answer(model, processor, few[0], few[0].correct)
    assert processor.decode(batch["input_ids"][0, -length:]) == few[0].correct
    assert compute_hidden_states(model, batch).shape == (8, batch["input_ids"].shape[1], 128)
    with pytest.raises(InputError, match="no token of its own"):
        encode_answer(model, processor, few[0], "")


def test_nullu_finds_the_directions_in_which_captions_differ(model_and_processor, few):
    model, processor = model_and_processor
    directions = fit_nullu(model, processor, few).tensors["directions"]
    assert directions.shape == (8, FEW, 128)
    assert torch.allclose(directions @ directions.mT, torch.eye(FEW).expand(8, -1, -1), atol=1e-4)
    means = []
    for demonstration in few:
        captions = []
        for caption in (demonstration.correct, demonstration.hallucinated):
            inputs = caption_inputs(processor, demonstration, caption)
            words = len(processor.tokenizer(caption, add_special_tokens=False)["input_ids"])
            states = model(**inputs, output_hidden_states=True).hidden_states[3][0]  # after the third layer
            captions.append(states[-words:].mean(0))
        means.append(captions[0] - captions[1])
    _, _, expected = torch.linalg.svd(torch.stack(means), full_matrices=False)
    assert torch.allclose((expected * directions[2]).sum(-1).abs(), torch.ones(FEW), atol=1e-2)


def mean_and_component(rows):
    mean = rows.mean(0)
    first = torch.linalg.svd(rows - mean, full_matrices=False).Vh[0]
    return mean + first * (first @ mean).sign()


def test_a_direction_is_the_mean_plus_the_first_component():
    draw = torch.Generator().manual_seed(0)
    spread = torch.randn(12, generator=draw)
    mean = torch.randn(12, generator=draw)
    rows = mean + torch.randn(40, 1, generator=draw) * spread + 1e-3 * torch.randn(40, 12, generator=draw)
    assert torch.allclose(
        vti_fitter.compute_direction(rows.view(40, 3, 4)).flatten(), mean_and_component(rows), atol=1e-4
    )


def test_equal_differences_have_their_mean_for_a_direction():
    assert torch.allclose(vti_fitter.compute_direction(torch.ones(5, 2, 3)), torch.ones(2, 3))


def caption_inputs(processor, demonstration, caption):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": demonstration.prompt}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images=demonstration.picture, text=f"{prompt} {caption}", return_tensors="pt")


@torch.no_grad()
def test_vti_finds_what_is_written_in_the_paper(model_and_processor, few):
    model, processor = model_and_processor
    fitted = vti_fitter.fit_vti(model, processor, few, trials=2, seed=3)
    assert fitted.settings == {"trials": 2, "masked": 0.99, "seed": 3}
    mask = vti_fitter._build_mask(model, 0.99)
    textual, visual = [], []
    for demonstration in few:
        tower = model.model.vision_tower
        pixels = caption_inputs(processor, demonstration, demonstration.correct)["pixel_values"]
        masked = [mask(pixels[0], generator_for(pixels[0], seed))[None] for seed in (3, 4)]
        states = [torch.stack(tower(of, output_hidden_states=True).hidden_states[1:])[:, 0] for of in (pixels, *masked)]
        visual.append((states[1] + states[2]) / 2 - states[0])
        last = []
        for caption in (demonstration.correct, demonstration.hallucinated):
            twin = Twin(model, image_token=model.config.image_token_id)
            twin.run(caption_inputs(processor, demonstration, caption))
            last.append(torch.stack([twin.hidden[layer][0, -1] for layer in range(1, 9)]))
        textual.append(last[0] - last[1])
    expected = mean_and_component(torch.stack(textual).flatten(1)).view(8, 128)
    assert torch.allclose(fitted.tensors["decoder"], expected, atol=1e-3)
    for token in (0, 1, 40):
        expected = mean_and_component(torch.stack(visual)[:, :, token].flatten(1)).view(4, 128)
        assert torch.allclose(fitted.tensors["vision"][:, token], expected, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vti_is_fitted_on_every_layout_of_pictures(monkeypatch, architecture):
    """Demonstrations are numbers here: seeds of random prompts and pictures."""
    model, _ = tiny(architecture)

    def inputs(seed, text):
        return inputs_for(architecture, model, 1, text=text, seed=seed)

    monkeypatch.setattr(
        vti_fitter, "encode_answer", lambda model, _, seed, answer: (inputs(seed.picture, len(answer)), len(answer))
    )
    monkeypatch.setattr(
        vti_fitter, "encode_prompts", lambda model, _, seeds: left_padded([inputs(seed.picture, 5) for seed in seeds])
    )
    numbers = [Demonstration(seed, "", "aaaa", "bbb") for seed in range(3)]
    with torch.no_grad():
        tensors = vti_fitter.fit_vti(model, None, numbers, trials=2).tensors
    layers, tokens, size = tensors["vision"].shape
    packed = "pixel_values" in inputs(0, 3) and inputs(0, 3)["pixel_values"].ndim == 2
    print(f"{architecture}: {layers} layers, {tokens} tokens, {size}")
    assert (tokens == 1) == packed
    assert all(bool((tensor.flatten(1).norm(dim=-1) > 0).all()) for tensor in tensors.values())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.get_decoder().modules())


def test_masks_put_the_mean_of_a_channel_in_the_place_of_patches(model_and_processor):
    mask = vti_fitter._build_mask(model_and_processor[0], 0.99)
    draw = torch.Generator().manual_seed(1)
    picture = torch.randn(3, 64, 64, generator=draw)
    blurred = mask(picture, draw)
    unmasked = (blurred == picture).all(0)
    assert int(unmasked.sum()) == 64  # one patch of 8 x 8 in 64
    assert torch.allclose(blurred[:, ~unmasked], picture.mean((1, 2))[:, None].expand(-1, 64 * 63))
    packed = torch.randn(16, 3, 1, 32, generator=draw)
    blurred = mask(packed, draw)
    unmasked = (blurred == packed).flatten(1).all(1)
    assert int(unmasked.sum()) == 1
    assert torch.allclose(blurred[~unmasked], packed.mean((0, 2, 3), keepdim=True).expand(15, -1, -1, 32))


@pytest.mark.parametrize("strategy", [VTI, Nullu])
def test_a_fitted_strategy_changes_logits(tmp_path, model_and_processor, few, strategy):
    model, processor = model_and_processor
    path = tmp_path / "fitted"
    fitting.fit(strategy.name, model, processor, few[:4]).save(path)
    guard = Guard(model, processor, [strategy(path)])
    batch = guard.inputs(images=few[0].picture, messages=[{"role": "user", "content": few[0].prompt}])
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    plain, guarded = (call(**batch, **settings).logits[0] for call in (model.generate, guard.generate))
    effect = float((plain - guarded).abs().max())
    print(f"{strategy.name}: effect {effect:.3f}")
    assert effect > 0.01
