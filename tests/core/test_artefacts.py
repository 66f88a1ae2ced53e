"""Artefacts: written whole, read back as they were, and refused where they do not belong, with nothing changed."""

from __future__ import annotations

import pytest
import torch
import transformers
from lvlm_guard_steering import VTI, Nullu
from safetensors.torch import save_file

from lvlm_guard import Artefact, Guard, InputError, NoEffectWarning, StrategyRefused
from lvlm_guard.strategy.artefacts import config_hash
from lvlm_guard.testing import ARCHITECTURES, tiny

MANIFEST = {"model": "a tiny llava", "split": "train", "settings": {"rank": 2}, "lvlm_guard": "0.1.0"}


@pytest.fixture(scope="module")
def llava():
    return tiny("llava")


@pytest.fixture
def artefact(llava):
    directions = torch.linalg.qr(torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))).Q.mT
    return Artefact("nullu", {"directions": directions}, {**MANIFEST, "config": config_hash(llava[0].config)})


@pytest.fixture
def path(artefact, tmp_path):
    artefact.save(tmp_path / "nullu.safetensors")
    return tmp_path / "nullu.safetensors"


def test_what_is_written_is_read(artefact, path, llava):
    found = Artefact.load(path, "nullu", llava[0].config)
    assert torch.equal(found.tensors["directions"], artefact.tensors["directions"])
    assert (found.kind, found.manifest) == ("nullu", artefact.manifest)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_leaves_what_was_there(artefact, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("os.fdopen", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device"):
        artefact.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_missing_file_names_the_command(tmp_path, llava):
    with pytest.raises(InputError, match=r"no artefact .*gone.*lvlm-guard fit vti"):
        Artefact.load(tmp_path / "gone", "vti", llava[0].config)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "weights of others", "manifest without a kind"])
def test_a_corrupt_file_is_named(path, llava, damage):
    content = path.read_bytes()
    broken = {"cut": content[: len(content) // 2], "noise": b"\x7f" * 200, "empty": b""}
    if damage in broken:
        path.write_bytes(broken[damage])
    else:
        metadata = {"lvlm_guard": "[1]"} if damage.startswith("manifest") else None
        save_file({"weight": torch.ones(2)}, path, metadata)
    with pytest.raises(InputError, match=r"nullu\.safetensors is not an artefact of lvlm_guard"):
        Artefact.load(path, "nullu", llava[0].config)


def test_another_kind_is_refused(path, llava):
    with pytest.raises(InputError, match=r"'vti' needs an artefact fitted for it: .* was fitted for 'nullu'"):
        Artefact.load(path, "vti", llava[0].config)


def test_tensors_that_a_strategy_needs_are_named(tmp_path, llava):
    config = llava[0].config
    path = tmp_path / "vti.safetensors"
    Artefact("vti", {"decoder": torch.ones(3, 32)}, {"config": config_hash(config)}).save(path)
    with pytest.raises(InputError, match=r"vti\.safetensors holds no 'vision'"):
        Artefact.load(path, "vti", config)["vision"]


def test_another_model_is_refused_by_name_and_nothing_is_changed(path):
    model, inputs = tiny("gemma3")
    settings = {"max_new_tokens": 3, "do_sample": False}
    before = model.generate(**inputs, **settings)
    with pytest.raises(
        StrategyRefused, match=r"'nullu' needs an artefact of this model \(gemma3\): .* was fitted on a tiny llava"
    ):
        Guard(model, None, [Nullu(path)]).generate(**inputs, **settings)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.get_decoder().modules())
    assert torch.equal(model.generate(**inputs, **settings), before)


def test_more_directions_than_there_are_is_refused(path, llava):
    model, inputs = llava
    with pytest.raises(InputError, match=r"'nullu' needs 4 directions: lower k, .* holds 2"):
        Guard(model, None, [Nullu(path)]).generate(**inputs, max_new_tokens=2)


def test_a_neutral_strategy_reads_no_file(llava):
    model, inputs = llava
    neutral = [VTI("nowhere", alpha_text=0.0, alpha_image=0.0), Nullu("nowhere", strength=0.0)]
    with pytest.warns(NoEffectWarning, match="changed no logit"):
        guarded = Guard(model, None, neutral).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(guarded, model.generate(**inputs, max_new_tokens=2, do_sample=False))


def test_every_architecture_has_a_hash_of_its_own():
    hashes = {name: config_hash(entry.build()) for name, entry in ARCHITECTURES.items()}
    assert len(set(hashes.values())) == len(hashes)


def test_the_hash_sees_sizes_and_not_where_the_config_came_from(tmp_path):
    config = ARCHITECTURES["qwen2_vl"].build()
    before = config_hash(config)
    config.save_pretrained(tmp_path)
    assert config_hash(transformers.AutoConfig.from_pretrained(tmp_path)) == before
    config.vision_config.depth += 1
    assert config_hash(config) != before


def test_the_hash_is_the_same_in_every_version():
    assert config_hash(ARCHITECTURES["llava"].build()) == "345c1da66dfc6311"
