"""Checkpoints with a stack baked in: they answer as the guarded model does, and what cannot be baked is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import safetensors.torch
import torch
from command_line import run_command, run_refused
from fitted import make_artefact
from lvlm_guard_steering import VTI, Nullu
from saved_models import save_model
from transformers import AutoModelForImageTextToText

from lvlm_guard import Guard, HiddenEdit, InputError, Project, Refused, Shift, Stack, StrategyRefused, hookimpl, loading
from lvlm_guard.export.checkpoint import CheckpointExport
from lvlm_guard.export.folders import MANIFEST
from lvlm_guard.export.folding import Fold
from lvlm_guard.testing.tiny import tiny
from lvlm_guard.verification.prompts import PromptSet

LAYERS = (1 / 3, 1.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model("llava", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def nullu(tmp_path) -> Nullu:
    return Nullu(make_artefact(tmp_path, "nullu", "llava", tiny("llava")[0])[0], layers=LAYERS)


def bake(model: Path, out: Path, *strategies, **options):
    return CheckpointExport(str(model), Stack.of(list(strategies)), out, **options).run()


def compute_logits(folder: Path, *strategies) -> torch.Tensor:
    """Logits of the first token, of a picture and a question."""
    model, processor = loading.load(str(folder), "cpu")
    guard = Guard(model, processor, list(strategies))
    settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    return guard.generate(**PromptSet(guard).first, **settings).logits[0]


def test_a_baked_checkpoint_answers_plainly_as_the_guarded_model_does(saved, nullu, tmp_path):
    comparison, tensors = bake(saved, tmp_path / "out", nullu)
    plain, guarded, baked = (compute_logits(saved), compute_logits(saved, nullu), compute_logits(tmp_path / "out"))
    assert (guarded - plain).abs().max() > 0.1
    torch.testing.assert_close(baked, guarded, atol=1e-4, rtol=0)
    assert tensors == 2
    assert comparison.difference <= comparison.tolerance < comparison.effect


def test_transformers_alone_loads_it_whole(saved, nullu, tmp_path):
    bake(saved, tmp_path / "out", nullu)
    kind = AutoModelForImageTextToText
    model, info = kind.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = PromptSet(Guard(*loading.load(str(saved), "cpu"))).first
    logits = model.eval()(**inputs).logits[:, -1].detach()
    torch.testing.assert_close(logits, compute_logits(saved, nullu), atol=1e-4, rtol=0)


def test_everything_but_the_edited_weights_is_as_it_was(saved, nullu, tmp_path):
    bake(saved, tmp_path / "out", nullu)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    before, after = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "out"))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(manifest["tensors"])
    assert {name.split("layers.")[1] for name in changed} == {"1.mlp.down_proj.weight", "2.mlp.down_proj.weight"}
    files = {file.name for file in saved.iterdir()} - {"model.safetensors"}
    assert all((saved / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in files)
    assert list(manifest["artefacts"]) == [str(nullu.artefact)]
    assert len(next(iter(manifest["artefacts"].values()))) == 64


def test_weights_in_several_files(nullu, tmp_path):
    model = tiny("llava")[0]
    folder = save_model("llava", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    bake(folder, tmp_path / "out", nullu)
    torch.testing.assert_close(compute_logits(tmp_path / "out"), compute_logits(folder, nullu), atol=1e-4, rtol=0)
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


@dataclass(frozen=True)
class Edits:
    """One edit, the same for every request."""

    edit: HiddenEdit
    name: ClassVar[str] = "edits"

    @hookimpl
    def hidden(self, gen):
        yield self.edit


VECTOR = torch.linspace(-1, 1, 32)
DIRECTION = torch.nn.functional.normalize(VECTOR, dim=0)[None]


@pytest.mark.parametrize(
    "edit",
    [
        HiddenEdit("mlp", Shift(VECTOR, 2.0), tower="vision"),
        HiddenEdit("attention", Shift(lambda hidden, view: VECTOR * (view.layer + 1), 2.0), tower="vision"),
        HiddenEdit("mlp", Project(DIRECTION, 0.5), tower="vision", when="prefill"),
        HiddenEdit("attention", Project(DIRECTION)),
    ],
    ids=["shift", "shift by layer", "projection with a bias", "attention"],
)
def test_linear_edits_of_both_towers(saved, tmp_path, edit):
    bake(saved, tmp_path / "out", Edits(edit))
    assert (compute_logits(saved, Edits(edit)) - compute_logits(saved)).abs().max() > 1e-3
    torch.testing.assert_close(compute_logits(tmp_path / "out"), compute_logits(saved, Edits(edit)), atol=1e-4, rtol=0)


def test_edits_of_one_matrix_are_baked_in_their_order(saved, nullu, tmp_path):
    edits = Edits(HiddenEdit("mlp", Project(DIRECTION), LAYERS))
    bake(saved, tmp_path / "out", nullu, edits)
    torch.testing.assert_close(compute_logits(tmp_path / "out"), compute_logits(saved, nullu, edits), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("vcd", "'vcd' cannot be exported: it adds terms"),
        ("pai", "'pai' cannot be exported"),
        ("vsv", "'vsv' cannot be exported: it runs every prompt"),
        ("vaf", "'vaf' cannot be exported: it edits attention"),
        ("opera", "'opera' cannot be exported: it has a decoding loop"),
        ("plain", "nothing to bake"),
    ],
)
def test_what_is_no_edit_of_weights_is_refused(saved, tmp_path, monkeypatch, capsys, stack, words):
    arguments = ("export", "--to", "checkpoint", "--model", saved, "--stack", stack, "--out", tmp_path / "out")
    assert words in run_refused(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (HiddenEdit("mlp", lambda hidden, view: hidden / 2), "by a function"),
        (HiddenEdit("mlp", Project(DIRECTION), positions="image"), "some positions alone"),
        (HiddenEdit("mlp", Project(DIRECTION), when="decode"), "some positions alone"),
        (HiddenEdit("residual", Project(DIRECTION)), "edits the residual states"),
        (HiddenEdit("mlp", Shift(VECTOR)), "no bias to add it to"),
        (HiddenEdit("mlp", Project(lambda hidden, view: hidden[0, :1])), "other vectors for other requests"),
        (
            HiddenEdit("mlp", Project(lambda _, view: DIRECTION * view.gen.prompt.ids.shape[1])),
            "other vectors for other requests",
        ),
        (HiddenEdit("mlp", Project(lambda _, view: DIRECTION * view.valid.sum())), "looks at a request (valid)"),
        (HiddenEdit("mlp", Shift(VECTOR.expand(2, 1, 32))), "other vectors for other rows"),
    ],
)
def test_edits_that_depend_on_a_request_or_fit_no_matrix(saved, tmp_path, edit, words):
    with pytest.raises(StrategyRefused) as refused:
        bake(saved, tmp_path / "out", Edits(edit))
    assert words in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_turns_keep_norms_which_no_matrix_does(saved, tmp_path):
    vti = VTI(make_artefact(tmp_path, "vti", "llava", tiny("llava")[0])[0])
    with pytest.raises(StrategyRefused, match="keeps their norms"):
        bake(saved, tmp_path / "out", vti)


def test_a_norm_behind_the_block_is_refused(tmp_path):
    folder = save_model("gemma3", tmp_path / "model")
    nullu = Nullu(make_artefact(tmp_path, "nullu", "gemma3", tiny("gemma3")[0])[0], layers=LAYERS)
    with pytest.raises(Refused, match="lies behind Gemma3RMSNorm"):
        bake(folder, tmp_path / "out", nullu)


def test_a_neutral_strategy_leaves_nothing_to_bake(saved, nullu, tmp_path):
    with pytest.raises(InputError, match="nothing to bake"):
        bake(saved, tmp_path / "out", dataclasses.replace(nullu, strength=0.0))


def test_an_artefact_of_another_model_is_refused(saved, tmp_path):
    path, _ = make_artefact(tmp_path, "nullu", "qwen2_vl", tiny("qwen2_vl")[0])
    with pytest.raises(StrategyRefused, match="needs an artefact of this model"):
        bake(saved, tmp_path / "out", Nullu(path))


def test_an_export_that_answers_otherwise_is_not_kept(saved, nullu, tmp_path, monkeypatch):
    monkeypatch.setattr(Fold, "apply", lambda self: None)
    with pytest.raises(Refused, match="do not answer as the guarded model does"):
        bake(saved, tmp_path / "out", nullu)
    assert [file.name for file in tmp_path.iterdir()] == [nullu.artefact.name]


def test_an_effect_below_rounding_proves_nothing_and_is_not_kept(saved, nullu, tmp_path):
    with pytest.raises(Refused, match="changes less than rounding"):
        bake(saved, tmp_path / "out", dataclasses.replace(nullu, strength=1e-6))
    assert [file.name for file in tmp_path.iterdir()] == [nullu.artefact.name]


Kind = Literal["export", "empty", "file", "other", "no parent"]


def prepare(kind: Kind, folder: Path, saved: Path, nullu: Nullu) -> Path:
    out = folder / "out"
    if kind == "export":
        bake(saved, out, nullu)
    elif kind == "file":
        out.write_text("mine")
    elif kind == "no parent":
        return out / "deeper"
    else:
        out.mkdir()
        if kind == "other":
            (out / "thesis.txt").write_text("mine")
    return out


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["export", "file", "other", "no parent"])
def test_nothing_is_written_over_but_an_export_by_force(saved, nullu, tmp_path, kind, force):
    out = prepare(kind, tmp_path, saved, nullu)
    before = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()}
    if kind == "export" and force:
        bake(saved, out, dataclasses.replace(nullu, strength=0.5), force=True)
        assert json.loads((out / MANIFEST).read_text())["edits"][0]["strength"] == 0.5
        assert {file.name for file in tmp_path.iterdir()} == {"out", nullu.artefact.name}
        return
    with pytest.raises(InputError):
        bake(saved, out, nullu, force=force)
    assert {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()} == before


def test_a_full_disk_leaves_nothing(saved, nullu, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    out = prepare("empty", tmp_path, saved, nullu)
    monkeypatch.setattr("lvlm_guard.export.weight_files.save_file", fail)
    with pytest.raises(InputError, match="No space left"):
        bake(saved, out, nullu)
    assert {file.name for file in tmp_path.iterdir()} == {"out", nullu.artefact.name}
    assert list(out.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path, nullu, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written to"):
        bake(Path("no model"), tmp_path / "out", nullu)


def test_the_command_says_what_was_compared(saved, nullu, tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text(f'[[stack]]\nname = "nullu"\nparams = {{artefact = "{nullu.artefact}", layers = [0.0, 1.0]}}\n')
    arguments = ("export", "--to", "checkpoint", "--model", saved, "--stack", file, "--out", tmp_path / "out")
    printed = " ".join(run_command(*arguments).split())
    assert "3 tensors changed" in printed
    assert "tolerance 0.0002" in printed
