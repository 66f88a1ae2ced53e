"""Steering vectors for other programs: read back as those programs read them, and what a form cannot hold is refused."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from command_line import run_command
from fitted import make_artefact
from lvlm_guard_steering import VTI, Nullu
from saved_models import save_model

from lvlm_guard import InputError, Stack, StrategyRefused
from lvlm_guard.export.folders import MANIFEST
from lvlm_guard.export.vectors import VectorExport
from lvlm_guard.testing.tiny import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model("llava", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def vti(tmp_path):
    path, tensors = make_artefact(tmp_path, "vti", "llava", tiny("llava")[0])
    return VTI(path, alpha_image=0.0), torch.nn.functional.normalize(tensors["decoder"], dim=-1)


def write(model, out, reader, *strategies):
    return VectorExport(str(model), Stack.of(list(strategies)), out, reader).run()


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("reader", ["easysteer", "repeng"])
def test_a_direction_for_each_layer(saved, vti, tmp_path, reader):
    strategy, directions = vti
    assert write(saved, tmp_path / "out", reader, strategy) == ["vti.gguf"]
    tensors = read_gguf(tmp_path / "out" / "vti.gguf")
    assert list(tensors) == [f"direction.{layer}" for layer in range(3)]
    for layer, direction in enumerate(directions):
        np.testing.assert_allclose(tensors[f"direction.{layer}"], direction.numpy(), atol=1e-6)
        assert tensors[f"direction.{layer}"].dtype == np.float32
    opened = gguf.GGUFReader(tmp_path / "out" / "vti.gguf")
    values = {name: opened.get_field(name).contents() for name in opened.fields}
    assert values["general.architecture"] == "controlvector"
    assert values["controlvector.model_hint"] == "llava"
    assert values["controlvector.layer_count"] == 3


def test_vllm_lens_gets_rows_and_keeps_norms_as_the_strategy_does(saved, vti, tmp_path):
    strategy, directions = vti
    write(saved, tmp_path / "out", "vllm-lens", strategy)
    content = json.loads((tmp_path / "out" / "vti.json").read_text())
    activations = content["activations"]
    rows = np.frombuffer(base64.b64decode(activations["data"]), dtype=activations["dtype"])
    np.testing.assert_allclose(rows.reshape(activations["shape"]), directions.numpy(), atol=1e-6)
    assert (content["layer_indices"], content["norm_match"], content["scale"]) == ([0, 1, 2], True, 1.0)


def test_several_directions_are_several_files(saved, tmp_path):
    path, tensors = make_artefact(tmp_path, "nullu", "llava", tiny("llava")[0])
    names = write(saved, tmp_path / "out", "llama.cpp", Nullu(path, k=2, layers=(1, 3)))
    assert names == ["nullu-direction-1.gguf", "nullu-direction-2.gguf"]
    second = read_gguf(tmp_path / "out" / names[1])
    assert list(second) == ["direction.1", "direction.2"]
    np.testing.assert_allclose(second["direction.2"], tensors["directions"][2, 1].numpy(), atol=1e-6)


def test_the_page_says_that_readers_do_something_else(saved, vti, tmp_path):
    write(saved, tmp_path / "out", "easysteer", vti[0])
    page = (tmp_path / "out" / "README.md").read_text()
    assert "`vti` turns what the mlp block of a layer returns" in page
    assert "another operation" in page
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["files"] == {"vti.gguf": {"layers": [0, 1, 2]}}
    assert list(manifest["artefacts"]) == [str(vti[0].artefact)]


def test_what_a_form_cannot_hold_is_refused(saved, vti, tmp_path):
    with pytest.raises(StrategyRefused, match=r"llama\.cpp none before 1"):
        write(saved, tmp_path / "out", "llama.cpp", vti[0])
    with pytest.raises(StrategyRefused, match=r"edits the vision tower.*alpha_image = 0.0"):
        write(saved, tmp_path / "out", "easysteer", VTI(vti[0].artefact))
    with pytest.raises(StrategyRefused, match="runs every prompt"):
        write(saved, tmp_path / "out", "easysteer", *Stack.of("vsv"))
    with pytest.raises(InputError, match="no vectors"):
        write(saved, tmp_path / "out", "easysteer")
    assert {file.name for file in tmp_path.iterdir()} == {vti[0].artefact.name}


def test_readers_that_are_not_known_are_not_guessed(saved, vti, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No form is known that 'easysteering' reads"):
        write(saved, tmp_path / "out", "easysteering", vti[0])
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'lvlm-guard\[export\]'"):
        write(saved, tmp_path / "out", "easysteer", vti[0])


def test_the_command(saved, vti, tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text(f'[[stack]]\nname = "vti"\nparams = {{artefact = "{vti[0].artefact}", alpha_image = 0.0}}\n')
    arguments = ("export", "--to", "vectors", "--reader", "easysteer", "--model", saved, "--stack", file)
    assert "vti.gguf" in run_command(*arguments, "--out", tmp_path / "out")
