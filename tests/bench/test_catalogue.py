"""Suites are found by entry point, ours as anybody's: broken ones are skipped, doubtful names are errors."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lvlm_guard.bench
from lvlm_guard.bench import suites
from lvlm_guard.bench.catalogue import GROUP, SuiteCatalogue, catalogue
from lvlm_guard.bench.suite import Suite
from lvlm_guard.cli import app
from lvlm_guard.errors import GuardWarning, InputError, PluginError
from lvlm_guard.testbed.suite import Scenes

POPE = "lvlm_guard.bench.suites.pope:Pope"
OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.suite import Loaded


@dataclass(frozen=True)
class Colours:
    name: ClassVar = "colours"
    title: ClassVar = "Plain pictures"
    levels: ClassVar = ("attribute",)
    licence: ClassVar = "CC0-1.0"
    homepage: ClassVar = ""
    required: ClassVar = ()
    parsers: ClassVar = ("exact",)

    count: int = 2

    def load(self, data):
        return Loaded([Item(str(n), str(n), "what colour ?", "red", "attribute", "colour") for n in range(self.count)])

    def picture(self, data, image):
        return Image.new("RGB", (64, 64), "red")

    def measures(self, parser):
        return [Measure("right", "attribute", "right", each(lambda said: (float("red" in said.text), 1.0)))]

    def official(self, said, parser):
        return {}
"""


def point(name, value):
    return EntryPoint(name=name, value=value, group=GROUP)


@pytest.fixture
def outsider(tmp_path, monkeypatch):
    """A folder on the path that pip could have filled: a module, and the metadata of its distribution."""
    (tmp_path / "outside_suites.py").write_text(OUTSIDE, encoding="utf-8")
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n", encoding="utf-8")
    points = "colours = outside_suites:Colours\nbroken = outside_suites:Missing\n"
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{points}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue.cache_clear()
    yield tmp_path
    catalogue.cache_clear()
    sys.modules.pop("outside_suites", None)


def test_bundled_suites_are_offered_by_entry_point():
    assert {"amber", "chair", "hallusionbench", "mme", "pope", "reefknot", "scenes", "sugarcrepe"} <= set(
        catalogue().names
    )
    offer = catalogue().find("scenes")
    assert (offer.name, offer.suite, offer.distribution) == ("scenes", Scenes, "lvlm-guard")
    assert isinstance(offer.suite(), Suite)


def test_the_room_of_benchmarks_names_no_testbed():
    sources = Path(lvlm_guard.bench.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "testbed" in path.read_text(encoding="utf-8")] == []


def test_an_outside_suite_is_listed_with_its_distribution_and_runs(outsider):
    listed = CliRunner().invoke(app, ["bench", "list", "--json"])
    described = {suite["name"]: suite for suite in json.loads(listed.stdout)}
    assert described["colours"]["distribution"] == "outside"
    assert described["colours"]["arguments"] == {"count": 2}
    assert described["pope"]["distribution"] == "lvlm-guard"
    folder = outsider / "run"
    off = [
        word
        for name in ("sampling", "mask_only", "temperature", "yes_bias", "olm", "pba", "contrarian", "swap", "bias")
        for word in ("--without", name)
    ]
    ran = CliRunner().invoke(app, ["bench", "run", "colours:count=3", *off, "--out", str(folder)])
    assert ran.exit_code == 0, ran.output
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert [(score["measure"], score["n"]) for score in scores] == [("right", 3)]


def test_a_broken_suite_is_reported_and_skipped(outsider):
    listed = CliRunner().invoke(app, ["bench", "list"])
    assert listed.exit_code == 0
    assert "skipped broken of outside: PluginError: The suite 'broken' of outside cannot be loaded" in listed.stderr
    assert all(name in listed.stdout for name in ("colours: Plain pictures", "from       outside", "pope: POPE"))
    with pytest.warns(GuardWarning, match="The suite 'broken' of outside was skipped"):
        offers, broken = catalogue().load_all()
    assert "colours" in {offer.name for offer in offers}
    assert [(failure.entry_point, failure.distribution) for failure in broken] == [("broken", "outside")]
    with pytest.raises(PluginError, match="'broken' of outside cannot be loaded: AttributeError"):
        catalogue().find("broken")


def test_a_name_offered_twice_is_an_error_and_the_others_stay():
    clashing = SuiteCatalogue(
        [point("pope", POPE), point("pope", "elsewhere:Pope"), point("scenes", "lvlm_guard.testbed.suite:Scenes")]
    )
    with pytest.raises(
        PluginError, match=r"'pope' is offered twice, by .*\(elsewhere:Pope\).* Uninstall or rename one"
    ):
        clashing.find("pope")
    assert clashing.find("scenes").suite is Scenes
    with pytest.warns(GuardWarning, match="offered twice"):
        offers, broken = clashing.load_all()
    assert [offer.name for offer in offers] == ["scenes"]
    assert {failure.entry_point for failure in broken} == {"pope"}


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"There is no suite 'poppe'. Did you mean 'pope'\?"):
        catalogue().find("poppe")


def test_only_the_suite_that_is_needed_is_imported():
    both = SuiteCatalogue([point("pope", POPE), point("bad", "no_such_package_anywhere:Bad")])
    assert both.names == ("bad", "pope")
    assert both.find("pope").name == "pope"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json:loads", "must be a frozen dataclass"),
        ("lvlm_guard.bench.items:Item", "lacks .*homepage.*; see lvlm_guard.bench.suite.Suite"),
        (POPE, "leads to a suite named 'pope'; give both the same name"),
    ],
)
def test_what_is_no_suite_is_refused(value, message):
    with pytest.raises(PluginError, match=message):
        SuiteCatalogue([point("mine", value)]).find("mine")


def test_the_old_functions_still_work_and_warn():
    with pytest.warns(DeprecationWarning, match="use lvlm_guard.bench.catalogue.list_suites"):
        assert suites.suites() == catalogue().names
    with pytest.warns(DeprecationWarning, match="use lvlm_guard.bench.catalogue.find_suite"):
        assert suites.suite("scenes") is Scenes
    with pytest.raises(AttributeError, match="no attribute 'sweets'"):
        suites.sweets  # noqa: B018 - the access is the test
