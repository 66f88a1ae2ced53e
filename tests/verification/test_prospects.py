"""What a config alone says: every obstacle is found where it is, and only there."""

from __future__ import annotations

import json

import pytest
import transformers
from versions import need

from lvlm_guard import loading
from lvlm_guard.errors import InputError
from lvlm_guard.verification.obstacles import find_obstacles
from lvlm_guard.verification.prospects import FILES_WITH_TEMPLATES, PROCESSOR_FILES, TEMPLATE_FILES, examine

LLAVA = {"model_type": "llava", "text_config": {"model_type": "llama"}}


def names(values):
    return [obstacle.name for obstacle in find_obstacles(values)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, []),
        ({"sliding_window": 4096}, ["sliding window"]),
        ({"sliding_window": 4096, "use_sliding_window": False}, []),
        ({"sliding_window": None}, []),
        ({"sliding_window": 4096, "layer_types": ["full_attention"]}, []),
        ({"sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"]}, ["sliding window"]),
        ({"layer_types": ["linear_attention", "full_attention"]}, ["layers without keys"]),
        ({"layer_types": ["mamba", "full_attention"]}, ["layers without keys"]),
        ({"layer_types": ["full_attention", "chunked_attention"]}, []),
        ({"is_encoder_decoder": True}, ["encoder-decoder"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantisation: awq"]),
    ],
)
def test_an_obstacle_of_the_decoder_is_found(text, expected):
    assert names({**LLAVA, "text_config": text}) == expected


def test_dynamic_quantisation_is_told_from_weights_in_fewer_bits():
    def means(settings):
        (obstacle,) = find_obstacles({**LLAVA, "quantization_config": settings})
        return obstacle.means

    assert "depend on the others" in means({"quant_method": "torchao", "quant_type": "int8_dynamic_activation"})
    assert "fewer bits" in means({"quant_method": "bitsandbytes", "load_in_4bit": True})


def test_types_that_cannot_be_built_say_why_and_what_to_do(tmp_path):
    def obstacle(**values):
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
        prospects = examine(str(tmp_path))
        assert prospects.unbuilt
        return prospects, prospects.obstacles[0]

    prospects, unknown = obstacle(model_type="llava_nxt")
    assert unknown.name == "unknown type"
    assert "llava_next" in prospects.nearest
    _, remote = obstacle(model_type="my_vlm", auto_map={"AutoConfig": "configuration_my_vlm.MyConfig"})
    assert remote.name == "remote code"
    assert "trust_remote_code" in remote.remedy
    _, text = obstacle(model_type="llama")
    assert text.name == "not image-text-to-text"


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    (tmp_path / "configuration_my_vlm.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    values = {"model_type": "my_vlm", "auto_map": {"AutoConfig": "configuration_my_vlm.MyConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert examine(str(tmp_path)).obstacles[0].name == "remote code"


def test_what_a_config_leaves_to_its_class_counts(tmp_path):
    need("qwen3_5")
    transformers.Qwen3_5Config().save_pretrained(tmp_path)
    prospects = examine(str(tmp_path))
    assert [obstacle.name for obstacle in prospects.obstacles] == ["layers without keys"]
    parts = {part.name: part for part in prospects.parts}
    assert parts["attention layers"].says == "8 of 32"
    assert parts["vision tower"].is_there
    assert parts["image token"].is_there
    assert not parts["processor"].is_there


def test_a_model_whose_config_cannot_be_built_is_a_finding_and_no_error(tmp_path):
    transformers.ChameleonConfig().save_pretrained(tmp_path)  # without a vocabulary of its pictures
    prospects = examine(str(tmp_path))
    assert "cannot build this model" in prospects.unbuilt
    assert prospects.cells["noise"].status


def test_a_config_that_its_class_refuses_ends_in_a_message(tmp_path):
    values = {"model_type": "llava", "vision_config": 7}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="cannot be loaded"):
        examine(str(tmp_path))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model, of which the files that were asked for are noted."""
    transformers.LlavaConfig(image_token_index=7).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    asked = []

    def fetch(name, file, **_):
        asked.append(file)
        path = tmp_path / file
        return str(path) if path.exists() else None

    read = transformers.PretrainedConfig.get_config_dict
    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", lambda name, **more: read(tmp_path, **more))
    monkeypatch.setattr(transformers.utils, "cached_file", fetch)
    return asked


def test_of_a_hub_id_only_config_files_are_fetched(hub, monkeypatch):
    monkeypatch.setattr(loading, "load_config", lambda name: transformers.LlavaConfig(image_token_index=7))
    prospects = examine("somebody/something")
    assert set(hub) == {*PROCESSOR_FILES, *TEMPLATE_FILES, *FILES_WITH_TEMPLATES}
    parts = {part.name: part.says for part in prospects.parts}
    assert parts["image token"] == "id 7"
    assert parts["processor"] == ""
    assert parts["chat template"] == "tokenizer_config.json"


def test_an_id_that_cannot_be_reached_ends_in_a_message(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", unreachable)
    with pytest.raises(InputError, match="no hub model of that name within reach"):
        examine("somebody/something")
