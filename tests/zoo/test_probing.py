"""Tiny models of many types, and a probe that tells what is exact on them."""

from __future__ import annotations

import json

import pytest
import torch

from lvlm_guard.errors import InputError
from lvlm_guard.testing.zoo import mechanisms, probing
from lvlm_guard.testing.zoo.building import TYPES, Specimen
from lvlm_guard.testing.zoo.cells import STATUSES, MechanismCell
from lvlm_guard.testing.zoo.probing import MECHANISMS, TypeProbe
from lvlm_guard.testing.zoo.rechecking import recheck
from lvlm_guard.testing.zoo.recipes import RECIPES
from lvlm_guard.testing.zoo.reference import follow
from lvlm_guard.testing.zoo.table import Entry, installed_versions, load_table, save_table

SAMPLE = ("glm4v", "internvl")
"""Packed patches with positions of their own, and plain pictures."""
TABLE = load_table()
MEASURED = [name for name, entry in TABLE.items() if entry.cells and name in TYPES]


@pytest.fixture(scope="module", params=[pytest.param(SAMPLE[0], marks=pytest.mark.slow), SAMPLE[1]])
def probe(request):
    return TypeProbe(Specimen(request.param))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_is_exact_on_a_sample_and_matters(probe, mechanism):
    cell = probe.cell(mechanism)
    assert cell.status == "exact", cell
    assert cell.effect > 100 * probing.TOLERANCE > 100 * cell.delta


def test_the_image_and_the_prompt_matter(probe):
    row, tokens = probe.rows[0], torch.zeros(1, 0, dtype=torch.long)
    plain = follow(probe.specimen.model, row, tokens, use_cache=True)
    other_image = {**row, "pixel_values": probe.rows[1]["pixel_values"]}
    assert float((follow(probe.specimen.model, other_image, tokens, use_cache=True) - plain).abs().max()) > 0.1


def test_a_contrast_that_is_a_little_off_is_wrong(probe, monkeypatch):
    monkeypatch.setattr(mechanisms, "contrast", lambda main, branch: 2.51 * main - 1.51 * branch)
    cell = probe.cell("noise")
    assert cell.status == "wrong"
    assert cell.delta > probing.TOLERANCE


def test_a_mechanism_without_effect_has_no_power(probe, monkeypatch):
    monkeypatch.setattr(mechanisms, "WEIGHT", 0.0)
    assert probe.cell("noise").status == "no power"


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("no"), "refused"), (IndexError("no"), "crash"), (probing.UnknownReference("no"), "unproven")],
)
def test_an_error_of_the_library_is_a_refusal_and_any_other_a_crash(probe, monkeypatch, error, status):
    class Broken:
        def __init__(self, *_):
            self.generate = self

        def __call__(self, **_):
            raise error

    monkeypatch.setattr(probing, "Guard", Broken)
    if status == "unproven":
        monkeypatch.setattr(probe, "run", lambda *_, **__: (_ for _ in ()).throw(error))
    cell = probe.cell("noise")
    assert (cell.status, "no" in cell.error) == (status, True)


def test_a_failure_of_plain_generate_is_no_crash_of_the_library(probe, monkeypatch):
    monkeypatch.setattr(probe, "rows", [{**row, "pixel_values": row["pixel_values"][..., :5]} for row in probe.rows])
    assert probe.cell("noise").status in {"unproven", "refused"}


def test_the_table_holds_every_type_with_every_mechanism_and_versions():
    assert {name for name in RECIPES if name in TYPES} <= set(TABLE)
    for name, entry in TABLE.items():
        assert bool(entry.skipped) != bool(entry.cells), name
        if entry.cells:
            assert list(entry.cells) == list(MECHANISMS), name
            assert set(entry.versions) == set(installed_versions()), name
            assert all(cell.status in STATUSES for cell in entry.cells.values()), name


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    table = {
        "one": Entry({"noise": MechanismCell("wrong", 0.5, 2.0, "batched", "recompute", 0.1)}, versions={"torch": "2"}),
        "two": Entry(skipped="why not"),
    }
    save_table(table, tmp_path / "table.json")
    values = json.loads((tmp_path / "table.json").read_text())
    assert {name: Entry.from_dict(entry) for name, entry in values.items()} == table


def test_an_unknown_type_names_the_nearest():
    with pytest.raises(InputError, match="glm4v"):
        recheck(["glm4w"])


def test_a_type_without_a_model_says_why():
    assert "diffusion" in recheck(["diffusion_gemma"])["diffusion_gemma"].skipped


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_type_is_as_the_table_says(name):
    found = {mechanism: cell.status for mechanism, cell in recheck([name])[name].cells.items()}
    assert found == {mechanism: cell.status for mechanism, cell in TABLE[name].cells.items()}
