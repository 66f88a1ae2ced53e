"""Tiny models of many types, and a probe that tells what is exact on them."""

from __future__ import annotations

import json

import pytest
import torch
from versions import need_mapped, specimen_of

from lvlm_guard.errors import InputError
from lvlm_guard.testing.tiny import IMAGE_TOKEN
from lvlm_guard.testing.zoo import mechanisms, probing
from lvlm_guard.testing.zoo.building import TYPES
from lvlm_guard.testing.zoo.cells import STATUSES, MechanismCell
from lvlm_guard.testing.zoo.probing import MECHANISMS, TypeProbe
from lvlm_guard.testing.zoo.prompts import joined
from lvlm_guard.testing.zoo.rechecking import recheck
from lvlm_guard.testing.zoo.recipes import RECIPES
from lvlm_guard.testing.zoo.reference import follow
from lvlm_guard.testing.zoo.table import Entry, installed_versions, load_table, mechanisms_of, save_table, status_of

SAMPLE = ("glm4v", "internvl")
"""Packed patches with positions of their own, and plain pictures."""
TABLE = load_table()
MEASURED_MECHANISMS = mechanisms_of(TABLE)
"""Mechanisms of the table: a mechanism is measured on every type, or on none."""
MEASURED = [name for name, entry in TABLE.items() if entry.cells and name in TYPES]


@pytest.fixture(scope="module", params=[pytest.param(SAMPLE[0], marks=pytest.mark.slow), SAMPLE[1]])
def probe(request):
    return TypeProbe(specimen_of(request.param))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_is_exact_on_a_sample_and_matters(probe, mechanism):
    cell = probe.cell(mechanism)
    if mechanism == "video" and not probe.specimen.takes_videos:
        assert cell.status == "not taken"
        return
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
    assert probe.cell("noise").status in {"not taken", "refused"}


def test_columns_of_inputs_say_what_a_model_does_not_take():
    probe = TypeProbe(specimen_of("git"))
    for mechanism in ("several images", "video"):
        assert probe.cell(mechanism).status == "not taken"


def test_a_prompt_with_several_images_lies_in_a_batch_with_others():
    specimen = specimen_of("idefics2")  # an axis of images behind that of rows
    rows = [specimen.row(4, seed, images) for seed, images in enumerate((2, 1))]
    batch = joined(rows)
    assert batch["pixel_values"].shape[:2] == batch["pixel_attention_mask"].shape[:2] == (2, 2)
    assert not batch["pixel_values"][1, 1].any()
    assert (batch["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [8, 4]


def test_frames_that_stand_apart_come_with_their_times():
    specimen = specimen_of("qwen3_vl")
    row = specimen.video_row()
    text = specimen.processor.decode(row["input_ids"][0].tolist())
    assert text.index("<0.5 seconds>") < text.index("<2.5 seconds>")
    assert row.get("mm_token_type_ids", torch.tensor(2)).max() == 2  # older versions take none
    assert TypeProbe(specimen).cell("video").status == "exact"


def test_beams_are_watched_where_generate_drops_processors():
    cell = TypeProbe(specimen_of("janus")).cell("beams")
    assert cell.status == "exact", cell


@pytest.mark.parametrize(("statuses", "status"), [(["exact", "wrong"], "wrong"), (["no power", "exact"], "no power")])
def test_a_cell_of_several_runs_is_as_bad_as_its_worst(statuses, status):
    cells = [MechanismCell(each, 1e-6 * place, 1.0 + place) for place, each in enumerate(statuses)]
    assert probing.join_cells(cells) == MechanismCell(status, 1e-6, 1.0)


def test_the_reference_is_sought_on_the_way_that_was_gone(probe, monkeypatch):
    """Where plain generate without a cache gives other numbers after some tokens, the cached run is the reference."""

    def follow_otherwise(model, inputs, tokens, *, use_cache):
        logits = follow(model, inputs, tokens, use_cache=use_cache)
        if not use_cache:
            logits[3:] *= 1.5
        return logits

    monkeypatch.setattr(probing.reference, "follow", follow_otherwise)
    probe = TypeProbe(probe.specimen)
    assert probe.reference_kind([None], 1) == "recompute"
    assert probe.cell("noise").reference == "cached"


def test_the_table_holds_every_type_with_every_mechanism_and_versions():
    assert {name for name in RECIPES if name in TYPES} <= set(TABLE)
    for name, entry in TABLE.items():
        assert bool(entry.skipped) != bool(entry.cells), name
        if entry.cells:
            assert list(entry.cells) == [mechanism for mechanism in MECHANISMS if mechanism in MEASURED_MECHANISMS], (
                name
            )
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


def test_a_mechanism_that_an_older_entry_lacks_is_not_measured():
    table = {
        "old": Entry({"noise": MechanismCell("exact")}),
        "new": Entry({"noise": MechanismCell("wrong"), "video": MechanismCell("exact")}),
    }
    assert mechanisms_of(table) == ["noise", "video"]
    assert [status_of(table["old"], mechanism) for mechanism in mechanisms_of(table)] == ["exact", "not measured"]


def test_an_unknown_type_names_the_nearest():
    with pytest.raises(InputError, match="glm4v"):
        recheck(["glm4w"])


def test_a_type_without_a_model_says_why():
    need_mapped("diffusion_gemma")
    assert "diffusion" in recheck(["diffusion_gemma"])["diffusion_gemma"].skipped


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_type_is_as_the_table_says(name):
    found = {mechanism: cell.status for mechanism, cell in recheck([name])[name].cells.items()}
    wanted = {mechanism: cell.status for mechanism, cell in TABLE[name].cells.items()}
    assert {mechanism: found[mechanism] for mechanism in wanted} == wanted
