"""Artefacts: written whole, read back as they were, and refused where they do not belong, with nothing changed."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from lvlm_guard_steering import VTI, Nullu
from safetensors.torch import save_file

from lvlm_guard import Artefact, Guard, InputError, NoEffectWarning, StrategyRefused
from lvlm_guard.errors import GuardWarning
from lvlm_guard.strategy.artefacts import config_hash, describe_model
from lvlm_guard.strategy.fingerprints import differ, digest_weights
from lvlm_guard.testing import ARCHITECTURES, tiny

MANIFEST = {"model": "a tiny llava", "split": "train", "settings": {"rank": 2}, "lvlm_guard": "0.1.0"}


@pytest.fixture(scope="module")
def llava():
    return tiny("llava")


@pytest.fixture
def artefact(llava):
    directions = torch.linalg.qr(torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))).Q.mT
    return Artefact("nullu", {"directions": directions}, {**MANIFEST, **describe_model(llava[0])})


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


def test_a_neutral_strategy_reads_no_file(llava, tmp_path):
    model, inputs = llava
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"nothing")
    neutral = [VTI(garbage, alpha_text=0.0, alpha_image=0.0), Nullu(garbage, strength=0.0)]
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


def artefact_of(model, path, **changes):
    tensors = {"directions": torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))}
    manifest = {"model": "a tiny llava", **describe_model(model), **changes}
    Artefact("nullu", tensors, manifest).save(path)
    return path


def use(model, inputs, path, k=4):
    return Guard(model, None, [Nullu(path, k=k)]).generate(**inputs, max_new_tokens=2, do_sample=False)


def test_another_model_of_the_same_shape_is_refused(tmp_path, llava):
    path = artefact_of(llava[0], tmp_path / "a")
    use(*llava, path)
    other, inputs = tiny("llava", seed=1)
    with pytest.raises(StrategyRefused, match="fitted on a tiny llava, whose weights differ"):
        use(other, inputs, path)


@pytest.mark.parametrize("fitted", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loaded", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("error")
def test_the_same_model_in_another_precision_is_known(fitted, loaded):
    first, second, other = (tiny("llava", seed=seed)[0] for seed in (0, 0, 1))
    digests = digest_weights(first.to(fitted))
    can_compare = torch.float32 in (fitted, loaded) or fitted == loaded  # each half lost what the other kept
    assert differ(digests, digest_weights(second.to(loaded))) is (False if can_compare else None)
    assert differ(digests, digest_weights(other.to(loaded))) is (True if can_compare else None)


@pytest.mark.parametrize(
    "facts", [{"weights": None, "revision": ""}, {"weights": {}}, {"weights": {"gone": {"bfloat16": "x"}}}]
)
def test_an_artefact_that_does_not_name_its_weights_loads_with_a_warning(tmp_path, llava, facts):
    path = artefact_of(llava[0], tmp_path / "a", **facts)
    with pytest.warns(GuardWarning, match="does not say which weights"):
        use(*llava, path)


def test_another_revision_is_refused_where_weights_cannot_be_compared(tmp_path, monkeypatch):
    model, inputs = tiny("llava")
    path = artefact_of(model, tmp_path / "a", weights={}, revision="abc")
    monkeypatch.setattr(model.config, "_commit_hash", "def", raising=False)
    with pytest.raises(StrategyRefused, match="whose weights differ"):
        use(model, inputs, path)


def test_tensors_that_were_changed_afterwards_are_refused(path, llava):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="was changed after it was fitted"):
        Artefact.load(path, "nullu", llava[0].config)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 4, 32),
        torch.ones(3, 4, 31),
        torch.ones(3, 32),
        torch.ones(3, 4, 32).double(),
        torch.ones(3, 4, 32).long(),
    ],
)
def test_directions_of_another_shape_or_dtype_are_refused(tmp_path, llava, tensor):
    model, inputs = llava
    Artefact("nullu", {"directions": tensor}, describe_model(model)).save(tmp_path / "a")
    with pytest.raises(InputError, match=r"'directions' must be floats \[3, any, 32\], got"):
        use(model, inputs, tmp_path / "a")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("inf")]),
        torch.ones(0, 3),
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
    ],
)
def test_tensors_without_usable_values_are_neither_written_nor_read(tmp_path, llava, tensor):
    path = tmp_path / "a"
    with pytest.raises(InputError, match="cannot be part of an artefact"):
        Artefact("nullu", {"directions": tensor}).save(path)
    assert not path.exists()
    if not (tensor.is_meta or tensor.is_sparse):
        manifest = {"kind": "nullu", **describe_model(llava[0])}
        save_file({"directions": tensor}, path, {"lvlm_guard": json.dumps(manifest)})
        with pytest.raises(InputError, match="cannot be part of an artefact"):
            Artefact.load(path, "nullu", llava[0].config)


def test_a_vision_tower_of_another_depth_is_refused(tmp_path, llava):
    model, inputs = llava
    tensors = {"decoder": torch.ones(3, 32), "vision": torch.ones(1, 26, 32)}
    Artefact("vti", tensors, describe_model(model)).save(tmp_path / "a")
    with pytest.raises(StrategyRefused, match="directions of this vision tower"):
        Guard(model, None, [VTI(tmp_path / "a")]).generate(**inputs, max_new_tokens=2)
