"""What a row says about the model, and what it keeps to itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lvlm_guard.verification.results import describe_model, describe_versions


def describe(path="llava-hf/llava-1.5-7b-hf", name=None, **config):
    settings = SimpleNamespace(_name_or_path=path, model_type="llava", **config)
    model = SimpleNamespace(config=settings, dtype=torch.bfloat16, device=torch.device("cpu"))
    return describe_model(model, "0" * 32, name)


def test_a_hub_id_is_kept_with_its_revision():
    model = describe(_commit_hash="abc")
    assert (model.name, model.revision, model.dtype) == ("llava-hf/llava-1.5-7b-hf", "abc", "bfloat16")


@pytest.mark.parametrize("path", ["{}/mine", "{}/mine/", "~/models/mine", "/nowhere/of/anybody/mine"])
def test_of_a_folder_only_its_name_is_kept(path, tmp_path):
    (tmp_path / "mine").mkdir()
    assert describe(path.format(tmp_path)).name == "mine"


def test_a_folder_that_looks_like_an_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert describe("models/mine").name == "mine"


@pytest.mark.parametrize("path", ["", None])
def test_a_model_without_a_name_is_called_so(path):
    assert describe(path).name == "unnamed"
    assert describe(path, "testbed").name == "testbed"


@pytest.mark.parametrize(
    ("settings", "method"),
    [({}, ""), ({"quantization_config": {"quant_method": "awq"}}, "awq"),
     ({"quantization_config": SimpleNamespace(quant_method="bitsandbytes")}, "bitsandbytes")],
)  # fmt: skip
def test_the_way_weights_are_stored_is_named(settings, method):
    assert describe(**settings).quantisation == method


def test_versions_are_those_that_decide():
    assert set(describe_versions()) == {"lvlm-guard", "transformers", "torch"}
