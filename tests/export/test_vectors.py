"""Steering vectors for other programs: read back by the rules of those programs, and what a form cannot hold is refused."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import pytest
import torch
from command_line import run_command
from fitted import make_artefact
from lvlm_guard_steering import VTI, Nullu
from saved_models import save_model

from lvlm_guard import Guard, HiddenEdit, InputError, Shift, Stack, StrategyRefused, anatomy, hookimpl, loading
from lvlm_guard.export.folders import MANIFEST
from lvlm_guard.export.vector_files import READERS
from lvlm_guard.export.vectors import VectorExport
from lvlm_guard.testing.tiny import tiny
from lvlm_guard.verification.prompts import PromptSet


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model("llava", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def vti(tmp_path):
    path, tensors = make_artefact(tmp_path, "vti", "llava", tiny("llava")[0])
    return VTI(path, alpha_image=0.0), torch.nn.functional.normalize(tensors["decoder"], dim=-1)


def write(model, out, reader, *strategies):
    return VectorExport(str(model), Stack.of(list(strategies)), out, reader=reader).run()


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def read_as_repeng(path: Path) -> dict[int, np.ndarray]:
    """What `ControlVector.import_gguf` of repeng and `StatisticalControlVector.import_gguf` of EasySteer ask of a file."""
    reader = gguf.GGUFReader(path)
    assert bytes(reader.get_field("general.architecture").parts[-1]) == b"controlvector"
    assert bytes(reader.get_field("controlvector.model_hint").parts[-1])
    return {
        int(tensor.name.split(".")[1]): np.array(tensor.data)
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
    }


def read_as_llama(path: Path) -> dict[int, np.ndarray]:
    """What `common_control_vector_load` of llama.cpp asks of a file, and where it puts the rows: there is none for layer 0."""
    tensors = gguf.GGUFReader(path).tensors
    numbers = [int(tensor.name.removeprefix("direction.")) for tensor in tensors]
    widths = {int(tensor.n_elements) for tensor in tensors}
    assert min(numbers) >= 1, "a tensor for layer 0, or of another name, makes llama.cpp leave the whole file out"
    assert len(widths) == 1
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 and len(tensor.shape) == 1 for tensor in tensors)
    rows = np.zeros((max(numbers), widths.pop()), np.float32)
    for number, tensor in zip(numbers, tensors, strict=True):
        rows[number - 1] += tensor.data
    return {index + 1: row for index, row in enumerate(rows) if row.any()}


def read_as_lens(path: Path) -> dict[int, np.ndarray]:
    """What `SteeringVector.model_validate` of vllm-lens asks of a file: without `compression`, numbers as numpy has them."""
    content = json.loads(path.read_text())
    assert set(content) <= {"activations", "layer_indices", "scale", "norm_match", "position_indices"}
    assert set(content["activations"]) == {"data", "dtype", "shape"}
    data, dtype = base64.b64decode(content["activations"]["data"]), np.dtype(content["activations"]["dtype"])
    rows = np.frombuffer(data, dtype).reshape(content["activations"]["shape"])
    assert rows.ndim == 2
    return dict(zip(content["layer_indices"], rows, strict=True))


RULES = {"easysteer": read_as_repeng, "repeng": read_as_repeng, "llama.cpp": read_as_llama, "vllm-lens": read_as_lens}


@dataclass(frozen=True)
class Push:
    """Adds another vector to the output of each of the last two of three layers: what all of the readers do."""

    name: ClassVar[str] = "push"

    @hookimpl
    def hidden(self, gen):
        yield HiddenEdit("residual", Shift(lambda hidden, view: push(view.layer), 3.0), (1, 3))


def push(layer: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.linspace(-1, layer, 32), dim=0)


def compute_logits(folder: Path, *strategies, added=()) -> torch.Tensor:
    """Logits of the first token, with vectors added to the outputs of some layers as the readers add them."""
    model, processor = loading.load(str(folder), "cpu")
    guard = Guard(model, processor, list(strategies))
    settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    layers = anatomy.decoder_layers(model)
    with ExitStack() as undo:
        for layer, vector in dict(added).items():
            undo.callback(layers[layer].register_forward_hook(add(torch.tensor(vector))).remove)
        return guard.generate(**PromptSet(guard).first, **settings).logits[0]


def add(vector: torch.Tensor):
    def hook(_, __, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    return hook


@pytest.mark.parametrize("reader", READERS)
def test_what_each_program_reads_is_the_vector_of_the_layer_behind_which_it_is_added(saved, tmp_path, reader):
    (name,) = write(saved, tmp_path / "out", reader, Push())
    read = RULES[reader](tmp_path / "out" / name)
    assert sorted(read) == [1, 2]
    guarded = compute_logits(saved, Push())
    shifted = {layer: compute_logits(saved, added=scale(read, layer)) for layer in (-1, 0)}
    assert (shifted[-1] - guarded).abs().max() > 0.1, "a layer too early would not be noticed"
    torch.testing.assert_close(shifted[0], guarded, atol=1e-4, rtol=0)
    assert "do: with their strength, answers are those of the guard" in (tmp_path / "out" / "README.md").read_text()


def scale(read: dict[int, np.ndarray], later: int) -> dict[int, np.ndarray]:
    return {layer + later: 3.0 * vector for layer, vector in read.items()}


def test_vllm_lens_itself_reads_what_is_written_for_it(saved, tmp_path):
    lens = pytest.importorskip("vllm_lens", reason="vllm-lens is not installed; its rules are held above")
    (name,) = write(saved, tmp_path / "out", "vllm-lens", Push())
    vector = lens.SteeringVector.model_validate(json.loads((tmp_path / "out" / name).read_text()))
    for layer, row in vector.layer_index_map.items():
        torch.testing.assert_close(vector.activations[row], push(layer))


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


def test_vllm_lens_measures_by_the_norm_what_turns_do_and_the_page_says_what_that_is(saved, vti, tmp_path):
    strategy, directions = vti
    write(saved, tmp_path / "out", "vllm-lens", strategy)
    assert "does not bring the norm back" in (tmp_path / "out" / "README.md").read_text()
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
    assert "- `vti.gguf`: 0, 1, 2" in page
    assert "norm_match" not in page
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
