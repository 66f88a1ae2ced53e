"""The page of a model's diagnosis says what its JSON says, in words and in tables, and needs nothing else."""

from __future__ import annotations

import csv
import json
import re
import warnings
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from diagnosed_models import CASES, NASTY, make_model_diagnosis

from lvlm_guard import InputError
from lvlm_guard.diagnosis import Culprit, Diagnosis, diagnose_model
from lvlm_guard.diagnosis.model.checks import CHECKS, list_checks, list_failures
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.words import MEANINGS
from lvlm_guard.diagnosis.report import writing
from lvlm_guard.diagnosis.report.component_chart import draw_components
from lvlm_guard.diagnosis.report.model_page import CHECK_WORDS, build_view, render_model
from lvlm_guard.diagnosis.report.templating import write_number
from lvlm_guard.diagnosis.report.writing import find_model_page, write_model_report
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testing.plants import draw_plant, planted


class Tables(HTMLParser):
    """Keeps the rows of each table by the label of what it scrolls in, all text, and tags with attributes."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text, self.tags = {}, "", []
        self._label, self._cell = "", None
        self.feed(page.partition("</style>")[2])

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if values.get("class") == "wide":
            self._label = values["aria-label"]
        if tag == "tr":
            self.tables.setdefault(self._label, []).append([])
        if tag in ("td", "th"):
            self.tables[self._label][-1].append("")
            self._cell = self._label

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self.tables[self._cell][-1][-1] += data

    def body(self, label):
        """Rows of a table without its head."""
        return self.tables[label][1:]

    @property
    def verdict(self):
        """What the verdict says, on one line."""
        return re.sub(r"\s+", " ", self.text.partition("Exact checks")[0])


def read(name):
    diagnosis = CASES[name]()
    return diagnosis, Tables(render_model(diagnosis))


@pytest.mark.parametrize("name", CASES)
def test_the_page_needs_nothing_else(name):
    page = render_model(CASES[name]())
    tags = Tables(page).tags
    assert not any(tag in ("script", "link", "iframe", "object", "img") for tag, _ in tags)
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(source.startswith("#") for source in sources)
    assert "url(" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", CASES)
def test_the_same_diagnosis_gives_the_same_page_also_from_its_json(name):
    diagnosis = CASES[name]()
    page = render_model(diagnosis)
    assert render_model(CASES[name]()) == page
    assert render_model(Diagnosis.from_dict(json.loads(diagnosis.to_json()))) == page


@pytest.mark.parametrize("name", CASES)
def test_names_of_models_are_no_markup(name):
    page = render_model(CASES[name]())
    assert "<script>" not in page
    assert "\u202e" not in page
    assert NASTY.replace("\u202e", "\ufffd") in unescape(page)


@pytest.mark.parametrize("name", CASES)
def test_every_figure_of_the_json_stands_in_a_table(name):
    diagnosis, page = read(name)
    evidence = diagnosis.to_dict()["evidence"]
    parts = {row[0]: row[1] for row in page.body("All components")} if evidence["scores"] else {}
    heads = [row[1:] for row in page.body("Score by layer and head")] if evidence["scores"] else []
    for key, score in evidence["scores"].items():
        component = Component.parse(key)
        shown = parts[str(component)] if component.head is None else heads[component.layer][component.head]
        assert shown == write_number(score), key
    rows = [*page.tables.get("What silencing brings", [])[1:], *page.tables.get("What silencing others brings", [])[1:]]
    gains = {str(Component.parse(key)): write_number(gain["gain"]) for key, gain in evidence["knock_out"].items()}
    assert {row[0]: row[1] for row in rows} == gains
    failed = {row[0]: row[1] for row in page.tables.get("Components that failed a check", [])[1:]}
    assert failed == {str(Component.parse(key)): write_number(size) for key, size in evidence["failed_checks"].items()}
    answers = page.body("Answers and the picture")
    assert [row[1:] for row in answers] == [
        [write_number(evidence[name]), write_number(evidence[f"sound_{name}"])] for name in ("log_probability", "swap_divergence")
    ]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_hovering_shows_stands_in_a_table_too(name):
    page = render_model(CASES[name]())
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    hovered = re.findall(r"<title>[^<]*: ([^<]*)</title>", page.partition("<body>")[2])
    assert len(hovered) >= 12
    assert not set(hovered) - set(cells)


def test_the_verdict_comes_first_and_in_words():
    diagnosis, page = read("head")
    verdict = page.verdict
    assert "Head 1 of layer 3" in verdict
    assert MEANINGS["head"] in verdict
    for words in (
        "41.188 standard deviations", "abnormal from 3.000 on", "decoder", "model: what the model is",
        "feed-forward of layer 3 (4.250; threshold 3.000)", "48 known items of scenes:count=60", "the profile of base/sound",
        "the earliest of 3 components", "by 0.062 nats", "by 0.219", "likelier by 0.875 nats", "half of the 1.250",
    ):  # fmt: skip
        assert words in verdict
    assert [row[0] for row in page.body("Components beyond the threshold")] == [
        "head 1 of layer 3", "feed-forward of layer 3", "output",
    ]  # fmt: skip
    assert [row[3] for row in page.body("Components beyond the threshold")] == ["named", "beyond", "beyond"]
    assert f"624 in 26 batteries, of scenes\nSHA-256{diagnosis.profile.sha}" in page.text


def test_a_score_near_the_threshold_asks_for_other_items():
    near = replace(make_model_diagnosis(), culprit=Culprit("head", "decoder", 3, 1, 3.9, 3.0))
    assert "ask again with other items" in Tables(render_model(near)).verdict
    assert "ask again with other items" not in read("head")[1].verdict


def test_a_sound_model_has_nothing_named():
    _, page = read("sound")
    assert "None" in page.verdict
    assert MEANINGS["none"] in page.verdict
    assert "the highest of all components" in page.verdict
    assert "none of 26 components is beyond" in page.verdict
    assert "No component is beyond the threshold of 3.000." in page.text
    assert "Components beyond the threshold" not in page.tables
    assert not any("ring" in (attributes.get("class") or "") for _, attributes in page.tags)


def test_without_a_profile_gains_are_shown_and_nothing_is_blamed():
    diagnosis, page = read("no profile")
    assert "Unknown" in page.verdict
    assert "look next at" in page.verdict
    assert "head 0 of layer 0 (0.037; threshold 0.020)" in page.verdict
    assert "without a profile nothing" not in page.verdict
    assert "there is no profile of the sound model to compare with" in page.text
    assert "All components" not in page.tables
    assert len(page.body("What silencing brings")) == 12
    assert page.body("Gain by layer and head")[0][1:] == ["0.037", "0.027"]
    assert "There was none." in page.text
    assert "2 things could not be looked at" in page.verdict
    partial = page.text.partition("What could not be looked at")[2]
    assert all(reason.replace("\u202e", "\ufffd") in partial for reason in diagnosis.partial)


def test_failed_checks_stand_first_and_unmade_ones_are_said():
    _, page = read("check")
    rows = page.body("Exact checks")
    assert len(rows) == len(CHECKS)
    assert rows[0][1:] == ["✗ failed", "2.188", "0.000", "nats added", "attention to the image of layers 2, 3"]
    assert rows[1][1:3] == ["fails in the sound model too", "0.500"]
    assert [row[1] for row in rows[2:]] == ["✓ passed"] * 3 + ["not made"] * 2
    assert "2.188 (nats added); 0.000 is allowed" in page.verdict
    assert "1 further component failed one" in page.verdict
    assert "an exact check had failed already" in page.text


def test_a_check_that_failed_without_a_size_says_so():
    sums = {"size": None, "allowed": 1.0, "at": "residual.2", "failed": ["residual.2"]}
    figures = {"checks": {"sums": sums}, "failed_checks": {"residual.2": None}}
    page = Tables(
        render_model(make_model_diagnosis(culprit=Culprit("residual", "decoder", 2, None, None, 1.0), evidence=figures))
    )
    assert page.body("Exact checks")[0][1:3] == ["✗ failed", "unmeasured"]
    assert page.body("Components that failed a check") == [["residual stream of layer 2", write_number(None)]]
    assert "unmeasured (times what rounding allows); 1.000 is allowed" in page.verdict


def test_a_prior_says_why():
    _, page = read("prior")
    assert "data: what the model learnt" in page.verdict
    assert "0.062 nats by which another item's picture moves answers; below 0.109 it has hardly a say" in page.verdict
    assert "No component is beyond the threshold, so none is guilty." in page.verdict


def test_a_prior_beside_an_abnormal_component_says_what_silencing_it_brought():
    culprit = Culprit("prior", "prior", None, None, 0.0625, 0.109375)
    diagnosis = make_model_diagnosis(
        culprit=culprit, evidence={"knock_out": {"head.3.1": {"gain": 0.125, "way": "zeroed"}}}
    )
    verdict = Tables(render_model(diagnosis)).verdict
    assert "head 1 of layer 3, but silencing it changes true answers by 0.125 of the 1.250 nats" in verdict


@pytest.mark.parametrize(("swap", "words"), [(None, "could not be measured"), (0.2, "not below half")])
def test_an_unknown_verdict_says_why(swap, words):
    culprit = Culprit("unknown", "unknown", threshold=3.0)
    verdict = Tables(render_model(make_model_diagnosis(culprit=culprit, evidence={"swap_divergence": swap}))).verdict
    assert "far less likely" in verdict
    assert words in verdict


def test_figures_that_are_not_there_are_dashes_and_no_error():
    page = Tables(render_model(Diagnosis(Culprit("none", "none"))))
    assert "does not hold what its checks found" in page.text
    assert page.body("Answers and the picture")[0][1:] == [write_number(None)] * 2


def test_what_is_no_diagnosis_of_a_model_is_refused(tmp_path):
    words = replace(make_model_diagnosis(), span=(0, 3))
    with pytest.raises(InputError, match="a verdict on words"):
        write_model_report(words, tmp_path / "out")
    strange = make_model_diagnosis(evidence={"scores": {"engine.3": 1.0}})
    with pytest.raises(InputError, match=r"evidence\.scores .* names what is no component"):
        write_model_report(strange, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_model_report(make_model_diagnosis(), tmp_path / "file")


def test_the_report_stands_beside_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    diagnosis = make_model_diagnosis()
    page = write_model_report(diagnosis, tmp_path)
    assert page == tmp_path / "diagnosis.html"
    assert page.read_text(encoding="utf-8") == render_model(diagnosis)
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == json.loads(diagnosis.to_json())
    rows = list(csv.DictReader((tmp_path / "components.csv").read_text().splitlines()))
    assert len(rows) == len(diagnosis.evidence["scores"])
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_report_that_was_broken_off_has_no_json(tmp_path, monkeypatch):
    write_model_report(make_model_diagnosis(), tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        write_model_report(CASES["sound"](), tmp_path)
    assert not (tmp_path / "diagnosis.json").exists()


def test_answers_find_the_page_of_the_model(tmp_path):
    page = write_model_report(make_model_diagnosis(), tmp_path / "what is wrong")
    figures = page.with_suffix(".json")
    assert find_model_page(figures, tmp_path / "why") == "../what%20is%20wrong/diagnosis.html"
    page.unlink()
    assert find_model_page(figures, tmp_path / "why") is None
    assert find_model_page(None, tmp_path) is None


def test_every_check_has_words():
    assert tuple(CHECK_WORDS) == CHECKS


def test_checks_hold_what_passed_and_failures_what_did_not():
    structure = SimpleNamespace(unequal=(2,))
    shared = {"leaks": {0: 0.0}, "text_biases": {}, "logits": 0.5, "pixels": None}
    batteries = [
        SimpleNamespace(sums={0: 0.1, 1: 0.3}, biases={0: 0.0, 1: 1.5}, **shared),
        SimpleNamespace(sums={0: 0.4, 1: 0.2}, biases={0: 0.0, 1: 0.5}, **shared),
    ]
    checks = {check.name: check for check in list_checks(structure, batteries, 0.0)}
    assert list(checks) == ["hidden_keys", "image_masks", "sums", "logits", "tokens"]
    assert checks["logits"].greatest == (Component("output"), 0.5)
    assert checks["sums"].sizes == {
        Component("residual", 0): 0.4, Component("residual", 1): 0.3, Component("residual", 2): float("inf"),
    }  # fmt: skip
    failures = list_failures(structure, batteries, 0.0)
    assert [(each.component.key, each.size, each.allowed) for each in failures] == [
        ("image_mass.1", 1.5, 0.0), ("residual.2", float("inf"), 1.0),
    ]  # fmt: skip


def test_components_are_drawn_from_left_to_right_and_high_scores_high():
    diagnosis = make_model_diagnosis()
    chart = build_view(diagnosis).chart
    assert [mark.x for mark in chart.marks] == sorted(mark.x for mark in chart.marks)
    by_value = sorted(chart.marks, key=lambda mark: mark.value)
    assert [mark.y for mark in by_value] == sorted((mark.y for mark in by_value), reverse=True)
    beyond = [mark for mark in chart.marks if mark.y < chart.threshold[0]]
    assert [mark.label for mark in beyond] == [
        "head 1 of layer 3, the highest of 2", "feed-forward of layer 3", "output",
    ]  # fmt: skip
    assert beyond == [mark for mark in chart.marks if mark.is_beyond]
    assert [mark.label for mark in chart.marks if mark.is_named] == [beyond[0].label]
    assert all(0 < mark.y < chart.bottom for mark in chart.marks)
    assert all(0 < mark.x < chart.width for mark in chart.marks)


def test_the_head_that_is_named_is_drawn_beside_a_higher_one():
    head, higher = Component("head", 0, 0), Component("head", 0, 1)
    chart = draw_components({head: 4.0, higher: 40.0}, 3.0, 1.0, culprit=head)
    assert {mark.label: mark.is_named for mark in chart.marks} == {
        "head 0 of layer 0": True, "head 1 of layer 0, the highest of 2": False,
    }  # fmt: skip


def test_heads_beyond_the_threshold_have_a_dot():
    page = render_model(make_model_diagnosis(32, 32, 24, evidence={}))
    assert page.count('<circle class="beyond"') == 1
    assert page.count("<title>layer ") == 32 * 32
    assert len(page) < 500_000


@pytest.mark.parametrize("kind", ["head_copies", "temperature", None])
def test_the_page_of_a_real_diagnosis_names_what_was_planted(sound, known, profile, kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is None:
            diagnosis, name = diagnose_model(*sound, known, profile=profile, model_id="mine"), "None"
        else:
            plant = draw_plant(kind, 0, sound[0], CATEGORIES)
            with planted(plant, *sound):
                diagnosis = diagnose_model(*sound, known[:48], profile=profile, model_id="mine")
            name = str(Component(plant.component, plant.layer, plant.head))
    page = Tables(write_model_report(diagnosis, tmp_path).read_text(encoding="utf-8"))
    assert ("p", {"class": "headline"}) in page.tags
    assert name[:1].upper() + name[1:] in page.verdict
    results = [row[1] for row in page.body("Exact checks")]
    assert results.count("✗ failed") == (kind == "temperature")
    assert "not made" not in results
    assert "the profile of testbed" in page.verdict
    assert profile.facts.sha in page.text
