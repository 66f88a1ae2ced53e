"""The second architecture: a real Qwen2-VL of the testbed, trained, written, read and guarded like the first."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from versions import skip_without_torchvision

from lvlm_guard.errors import InputError
from lvlm_guard.testbed import TestbedError, load
from lvlm_guard.testbed.architectures import ARCHITECTURES, architecture_of, find_architecture, processing
from lvlm_guard.testbed.architectures.picture import IMAGE_TOKENS, pixel_batch
from lvlm_guard.testbed.architectures.qwen2_vl import (
    AFTER,
    BEFORE,
    QWEN2_VL,
    THETA,
    build_config,
    build_model,
    build_processor,
    patches,
)
from lvlm_guard.testbed.card import error_sources
from lvlm_guard.testbed.card import measuring as card
from lvlm_guard.testbed.card.text import markdown
from lvlm_guard.testbed.model import FILES, WEIGHTS
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.training.language_stage import LanguageStage
from lvlm_guard.testbed.training.train import TrainingPlan, begin, run
from lvlm_guard.testbed.training.trainer import TrainingRun, train
from lvlm_guard.testbed.training.vision_stage import VisionStage
from lvlm_guard.testbed.world.language import IMAGE, vocabulary
from lvlm_guard.testbed.world.scenes import scenes


def _small():
    return build_config(hidden=32, layers=2, heads=4, groups=2, vision_width=16, tower_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "qwen2_vl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "qwen2_vl", replace(QWEN2_VL, build_config=_small))
        run(_plan(out))
    return out


def _plan(out: Path, arch: str = "qwen2_vl") -> TrainingPlan:
    few = {"tower_steps": 2, "speaking_steps": 2, "tower_batch": 2, "speaking_batch": 2}
    return TrainingPlan(out, processes=1, compiled=False, arch=arch, **few)


def _asked(processor, picture):
    words = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a mug ?"}]}]
    prompt = processor.apply_chat_template(words, add_generation_prompt=True)
    return processor(text=[prompt], images=[picture], return_tensors="pt")


def test_the_full_model_is_as_large_as_the_first_one() -> None:
    sizes = {}
    for name, one in ARCHITECTURES.items():
        with torch.device("meta"):
            sizes[name] = sum(weight.numel() for weight in one.model(one.build_config()).parameters())
    assert all(2e6 < size < 3e6 for size in sizes.values()), sizes


def test_the_words_and_the_image_tokens_are_those_of_the_first_one() -> None:
    processors = [one.build_processor() for one in ARCHITECTURES.values()]
    first, second = (one.tokenizer.get_vocab() for one in processors)
    assert {word: second[word] for word in vocabulary()} == first
    picture = scenes("iid", 1, seed=0)[0].picture
    for processor in processors:
        ids = _asked(processor, picture)["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.convert_tokens_to_ids(IMAGE)) == IMAGE_TOKENS
    assert [ids[2], ids[3 + IMAGE_TOKENS]] == [second[BEFORE], second[AFTER]]


def test_the_bundled_processor_leaves_scenes_as_they_are_and_makes_other_pictures_their_size() -> None:
    processor, drawn = load()[1].image_processor, [one.picture for one in scenes("iid", 2, seed=3)]
    made = processor(drawn, return_tensors="pt")["pixel_values"]
    assert torch.equal(made, processor(drawn, do_resize=False, return_tensors="pt")["pixel_values"])
    assert processor([drawn[0].resize((300, 200))], return_tensors="pt")["pixel_values"].shape == made[:1].shape


def test_training_packs_the_patches_that_the_processor_packs() -> None:
    drawn = scenes("flat", 3, seed=0)
    made = build_processor().image_processor([one.picture for one in drawn], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 16, 16]] * 3
    assert torch.allclose(patches(pixel_batch(drawn)), made["pixel_values"], atol=1e-6)
    assert made["pixel_values"].std() > 0.1


@pytest.mark.parametrize("stage", [VisionStage, LanguageStage])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(stage, tmp_path: Path) -> None:
    more = {"steps": 4} if stage is LanguageStage else {}
    ends = []
    for name, stops in (("straight", [None]), ("interrupted", [2, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            built = stage(QWEN2_VL, build_model(_small(), 1), batch=2, seed=1, **more)
            train(built, TrainingRun(tmp_path / name, steps=4, stop_after=stop))
        ends.append(built.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_tower_stage_learns(tmp_path: Path) -> None:
    train(VisionStage(QWEN2_VL, build_model(_small(), 1), batch=4, seed=1), TrainingRun(tmp_path, steps=61))
    logged = [json.loads(line) for line in (tmp_path / "tower.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]


def test_the_second_stage_trains_the_merger_and_leaves_the_rest_of_the_tower_alone(tmp_path: Path) -> None:
    stage = LanguageStage(QWEN2_VL, build_model(_small(), 1), batch=2, seed=1, steps=4)
    before = {name: weight.clone() for name, weight in stage.state_dict().items()}
    train(stage, TrainingRun(tmp_path, steps=2))
    changed = {name for name, weight in stage.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[3] for name in changed if ".visual." in name} == {"merger"}
    assert any(".language_model." in name for name in changed)


@skip_without_torchvision()
def test_a_trained_folder_is_an_ordinary_one(folder: Path) -> None:
    assert {one.name for one in folder.iterdir()} >= {*FILES, *QWEN2_VL.files, "training.json"}
    model, told = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = AutoProcessor.from_pretrained(folder)
    ours, its = load(folder=folder)
    assert architecture_of(ours) is QWEN2_VL
    one, other = (_asked(processor, scene.picture) for scene in scenes("iid", 2, seed=3))
    again = _asked(its, scenes("iid", 1, seed=3)[0].picture)
    assert all(torch.equal(one[name], again[name]) for name in one)
    with torch.no_grad():
        first, second, third = (model.eval()(**one).logits, ours(**again).logits, model(**other).logits)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third, atol=1e-4), "the picture must matter"


@skip_without_torchvision()
def test_a_trained_folder_names_its_rotary_axes_as_both_versions_read_them(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    assert "rope_parameters" not in text
    assert (text["rope_theta"], text["rope_scaling"]["mrope_section"]) == (THETA, [1, 1, 2])
    assert text["rope_scaling"]["type"] in ("mrope", "default")  # what 5.x writes, and what 4.57 does
    rotary = load(folder=folder)[0].model.language_model.rotary_emb
    assert rotary.inv_freq[-1].item() == pytest.approx(THETA ** (-3 / 4))


def test_a_trained_folder_brings_the_code_of_its_processor(folder: Path) -> None:
    code = (folder / "processing.py").read_text(encoding="utf-8")
    assert code == Path(processing.__file__).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert modules == {"__future__", "inspect", "typing", "transformers"}
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    assert settings["auto_map"]["AutoProcessor"] == "processing.PictureProcessor"


def test_the_processor_refuses_what_it_cannot_do() -> None:
    processor, picture = build_processor(), scenes("iid", 1, seed=0)[0].picture
    with pytest.raises(ValueError, match="no videos"):
        processor(text=["a"], videos=[picture])
    with pytest.raises(ValueError, match="1 times <image>, but there are 0 pictures"):
        processor(text=[f"{IMAGE} a"])
    with pytest.raises(ValueError, match="0 times <image>, but there are 1 pictures"):
        processor(images=[picture], text="a")


@skip_without_torchvision()
def test_its_branches_run_under_a_guard(folder: Path) -> None:
    model, processor = load(folder=folder)
    answers = error_sources.answer_branches(model, processor, Scenes(count=4, seed=5))
    plain, without = (error_sources.margins(answers[name]) for name in ("greedy", "image-free"))
    assert plain.keys() == without.keys() != set()
    assert max(abs(plain[key] - without[key]) for key in plain) > 1e-3


@pytest.mark.slow
def test_the_card_names_the_architecture_and_the_machine(folder: Path) -> None:
    card.write_card(folder, 6)
    text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    told = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert (told["arch"], told["processes"]) == ("qwen2_vl", 1)
    assert "A `Qwen2VLForConditionalGeneration` of" in text
    assert f"1 process of one thread each on a machine with {told['cores']} cores, device `cpu`" in text
    assert "--arch qwen2_vl --seed 0" in text


def test_the_bundled_card_is_what_its_figures_say() -> None:
    figures = json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))
    assert (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8") == markdown(figures)


def test_a_folder_begun_with_one_architecture_is_refused_to_the_other(tmp_path: Path) -> None:
    begin(_plan(tmp_path, "llava"))
    with pytest.raises(InputError, match="begun with arch llava, now qwen2_vl"):
        begin(_plan(tmp_path))
    noted = tmp_path / "training" / "plan.json"
    without = json.loads(noted.read_text())
    del without["arch"]
    noted.write_text(json.dumps(without))
    begin(_plan(tmp_path, "llava"))
    with pytest.raises(InputError, match="arch llava, now qwen2_vl"):
        begin(_plan(tmp_path))


def test_an_unknown_architecture_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no architecture named 'qwen2'\. Did you mean 'qwen2_vl'"):
        TrainingPlan(tmp_path, arch="qwen2")
    assert find_architecture("llava").name == "llava"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in FILES[1:]:
        (tmp_path / name).write_text("")
    with pytest.raises(TestbedError, match="no architecture named 'bert'"):
        load(folder=tmp_path)
