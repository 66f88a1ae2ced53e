"""The report page: every stack is on it with a verdict that its figures bear out, and it needs nothing else."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
import quick_run
from PIL import Image

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item
from lvlm_guard.bench.reporting import charts, examples, labels, page, tables, verdicts
from lvlm_guard.bench.reporting.results import Outcome, Results, Score, Spent, score
from lvlm_guard.bench.reporting.verdicts import Case, Rival
from lvlm_guard.bench.running.store import SystemRefusal
from lvlm_guard.bench.running.systems import CONTROLS
from lvlm_guard.bench.scoring.intervals import Interval, share
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.significance import Changes, Significance
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.suite import Scenes

VOID = {"meta", "img", "br", "link", "input", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = '</script><script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>\u202e\x00'


def significant(change, p=0.001, width=0.02):
    return Significance(Interval(change, change - width, change + width), p, 100, 50, "test", p)


def scored(system, measure="accuracy", value=0.7, change=None, p=0.001, level="object", better=True, n=100):
    found = Interval(value, value - 0.05, value + 0.05)
    against = None if change is None else significant(change, p)
    return Score("pope", system, measure, level, f"{measure} told", better, found, n, 50, against)


def answered(system, role="stack", different=10, ratio=2.0, **told):
    changed = None if system == "greedy" else Changes(different, 100)
    spent = Spent(10.0, 400, 25.0, ratio, ratio, 1.0, ratio)
    return Outcome("pope", system, role, 100, 100, changed=changed, spent=spent, **told)


def made(stacks, suites=("pope",), **changed):
    """Results of all controls and some stacks, each a little better than the one before."""
    names = [*CONTROLS, *stacks]
    roles = {name: "control" if name in CONTROLS else "stack" for name in names}
    told = {
        name: {"role": role, "decoding": "greedy", "matched": [], "stack": [{"name": name}]}
        for name, role in roles.items()
    }
    suite = {
        "name": "pope", "title": "POPE", "arguments": {}, "parser": "ours", "levels": ["object"], "licence": "MIT",
        "homepage": "https://example.org", "items": 100, "pictures": 50, "unusable_rows": 0, "problems": [],
    }  # fmt: skip
    manifest = {
        "model": {"id": "some/model", "class": "Model", "config": "c0", "weights": "d1", "dtype": "float32", "attention": "sdpa"},
        "seed": 7, "batch": 16, "limit": 100, "data": None, "systems": told, "without": [],
        "suites": dict.fromkeys(suites, suite),
        "versions": {"lvlm_guard": "0.1.0", "torch": "2.13.0"},
        "hardware": {"device": "cpu", "accelerator": None, "system": "Linux", "machine": "x86_64", "threads": 1},
        **changed,
    }  # fmt: skip
    outcomes, scores = [], []
    for at, name in enumerate(names):
        change = None if name == "greedy" else 0.004 * at
        outcomes += [replace(answered(name, roles[name], ratio=1 + at % 5 * 0.02), suite=one) for one in suites]
        for level in LEVELS:
            one = scored(name, f"accuracy_{level}", 0.6 + 0.004 * at, change, 0.5, level)
            scores += [replace(one, suite=suite) for suite in suites]
    return Results(manifest, dict.fromkeys(suites, "ours"), outcomes, scores)


def asked(number, truth="yes", prompt=None):
    return Item(f"q{number}", f"p{number // 2}", prompt or f"is there {number}?", truth, "object", "random")


def is_right(said):
    return float(said.text.split()[:1] == [said.item.truth]), 1.0


RIGHT = Measure("accuracy_object", "object", "accuracy", each(is_right), share, binary=True)


def source(answers, items=None, invented=None):
    """What systems said, as texts in the order of the items."""
    found = items or [asked(number) for number in range(len(next(iter(answers.values()))))]
    said = {name: [AnsweredItem(*one) for one in zip(found, texts, strict=True)] for name, texts in answers.items()}
    return page.Source(said, (RIGHT,), lambda name: Image.new("RGB", (8, 8), "red"), invented)


class Checked(HTMLParser):
    """Every element is closed in order; collects addresses and handlers."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.handlers = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def charts_of(text):
    return [ET.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def drawn(chart):
    """Names of the systems that a chart draws."""
    return {one.get("data-system") for one in chart.iter("g") if one.get("data-system")}


# Verdicts


def judged(change=0.1, p=0.001, rivals=None, others=(), better=True, **told):
    plain = answered("greedy", "control", **told.pop("plain", {}))
    lead = 0.09 if better else -0.09
    controls = {"yes_bias": Rival(0.01, significant(lead))} if rivals is None else rivals
    own = scored("vcd", value=0.8, change=change, p=p, better=better)
    return verdicts.judge(Case(answered("vcd", **told), plain, own, others, controls))


def test_a_stack_helps_only_if_it_beats_greedy_and_every_control():
    assert judged().kind == "helps"
    assert judged(p=0.2).kind == "indistinguishable from greedy"
    assert "Differences below about" in judged(p=0.2).why
    assert "Differences below" not in judged().why
    assert judged(change=-0.1).kind == "hurts"
    assert judged(change=-0.1, better=False).kind == "helps"
    assert judged(rivals={}).kind == "unproven"
    close = Rival(0.02, significant(0.08, p=0.3))
    assert judged(rivals={"pba": Rival(0.0, significant(0.1)), "olm": close}).kind == "unproven"


@pytest.mark.parametrize("control", ["yes_bias", "olm", "mask_only", "temperature", "pba"])
def test_a_gain_that_a_control_makes_too_only_shifts_bias(control):
    found = judged(rivals={"other": Rival(0.0, significant(0.1)), control: Rival(0.09, significant(0.01, p=0.4))})
    assert found.kind == "only shifts bias"
    assert control in found.why
    assert "+0.090" in found.why


def test_a_control_that_the_stack_clearly_beats_does_not_match_it():
    assert judged(rivals={"yes_bias": Rival(0.09, significant(0.01, p=0.004))}).kind == "helps"
    assert judged(rivals={"yes_bias": Rival(0.09, significant(-0.01, p=0.004))}).kind == "only shifts bias"


def test_more_yes_without_telling_yes_from_no_better_only_shifts_bias():
    moved = scored("vcd", "yes_ratio", change=0.2, better=None)
    level = {"auc": {"all": 0.8}}
    assert judged(others=[moved], auc={"all": 0.803}, plain=level).kind == "only shifts bias"
    assert judged(others=[moved], auc={"all": 0.85}, plain=level).kind == "helps"
    assert judged(p=0.5, others=[moved], auc={"all": 0.7}, plain=level).kind == "only shifts bias"
    still = scored("vcd", "yes_ratio", change=0.2, p=0.6, better=None)
    assert judged(others=[still], auc={"all": 0.8}, plain=level).kind == "helps"
    flat, risen = (scored("vcd", "harmonic_recall", change=0.1, p=p) for p in (0.5, 0.001))
    assert judged(others=[moved, flat]).kind == "only shifts bias"
    assert judged(others=[moved, risen]).kind == "helps"
    assert judged(yes_ratio=0.7, auc={"all": 0.8}, plain={"yes_ratio": 0.5, **level}).kind == "only shifts bias"


def test_a_share_of_yes_says_nothing_about_captions():
    case = Case(
        answered("rank", auc={"all": 0.7}),
        answered("greedy", "control", auc={"all": 0.8}),
        scored("rank", change=-0.01, p=0.5, better=False),
        [scored("rank", "yes_ratio", change=-0.2, better=None)],
    )
    assert verdicts.judge(case).kind == "only shifts bias"
    assert verdicts.judge(replace(case, asks=False)).kind == "indistinguishable from greedy"


def test_whether_a_headline_is_about_yes_and_no_is_read_from_what_it_counts():
    items = Scenes(count=12).load(None).items
    said = [AnsweredItem(item, "yes" if item.kind != "caption" else "a red car .") for item in items]
    measures = Scenes().measures("ours")
    asks = {one.name: verdicts.asks_yes_no(one, measures, said) for one in measures}
    assert asks["balanced_object"]
    assert asks["accuracy_attribute"]
    assert asks["habit_balanced"]
    assert not asks["chair_i"]
    assert not asks["miscoloured"]


def test_fewer_absent_objects_by_saying_less_is_no_help():
    fell = scored("vcd", "recall", change=-0.2)
    found = judged(change=-0.1, better=False, others=[fell])
    assert found.kind == "says less"
    assert "recall told (object) -0.200" in found.why
    assert judged(change=-0.1, better=False, others=[replace(fell, level="relation")]).kind == "helps"


def test_what_changed_nothing_refused_or_is_unfinished_is_told_before_any_figure():
    assert judged(different=0).kind == "changed nothing"
    refused = replace(answered("pai"), refused=SystemRefusal(3, "ModelRefused", "no attention scores"))
    assert verdicts.judge(Case(refused)).kind == "refused"
    assert "no attention scores" in verdicts.judge(Case(refused)).why
    assert verdicts.judge(Case(replace(answered("pai"), answers=50))).kind == "unfinished"
    assert verdicts.judge(Case(answered("pai"))).kind == "not compared"
    unknown = replace(scored("vcd"), against_greedy=significant(math.nan, math.nan))
    assert verdicts.judge(Case(answered("vcd"), None, unknown)).kind == "not compared"


def test_a_stack_is_tested_against_controls_on_the_same_answers():
    wrong, right = ["no"] * 40, ["yes"] * 40
    said = source(
        {"greedy": wrong, "copy": wrong, "yes_bias": right, "like": right, "mask_only": wrong, "sampling": right}
    )
    results = made(["like", "copy"])
    scores = [
        scored(name, "accuracy_object", float(texts[0].text == "yes"), float(texts[0].text == "yes") or None)
        for name, texts in said.answers.items()
    ]
    results = replace(results, scores=scores)
    found = {one.system: one for one in verdicts.verdicts(results, "pope", said.measures, said.answers)}
    assert (found["like"].kind, found["copy"].kind) == ("only shifts bias", "not compared")
    assert "yes_bias" in found["like"].why
    systems = {**results.manifest["systems"], "yes_bias": {"role": "control", "matched": ["copy"]}}
    matched = replace(results, manifest={**results.manifest, "systems": systems})
    assert verdicts.verdicts(matched, "pope", said.measures, said.answers)[0].kind == "unproven"


# Charts


@pytest.mark.parametrize("count", [3, 10, 35])
def test_labels_cover_neither_marks_nor_each_other(count):
    results = made([f"stack_number_{number}" for number in range(count)])
    found = charts.scatter(results, "pope", "accuracy_object")
    assert len(found.marks) == count + len(CONTROLS)
    sizes = [(charts.LETTER * len(one.label), charts.LINE - 2) for one in found.marks]
    boxes = [labels.Box.around(one.place.x, one.place.y, *size) for one, size in zip(found.marks, sizes, strict=True)]
    points = [labels.Box.around(one.x, one.y, 8, 8) for one in found.marks]
    frame = labels.Box(charts.LEFT, charts.TOP, charts.RIGHT, charts.BOTTOM)
    assert all(box.is_within(frame) for box in boxes)
    assert not any(box.overlaps(other) for at, box in enumerate(boxes) for other in (*boxes[:at], *points))


@pytest.mark.parametrize("count", [3, 10, 35])
def test_the_dashed_line_of_greedy_runs_through_no_label(count):
    chart = charts.scatter(made([f"stack_number_{number}" for number in range(count)]), "pope", "accuracy_object")
    line = labels.Box(charts.LEFT, chart.greedy - 0.75, charts.RIGHT, chart.greedy + 0.75)
    sizes = [(charts.LETTER * len(mark.label), charts.LINE - 2) for mark in chart.marks]
    boxes = [
        labels.Box.around(mark.place.x, mark.place.y, *size) for mark, size in zip(chart.marks, sizes, strict=True)
    ]
    assert [mark.label for mark, box in zip(chart.marks, boxes, strict=True) if box.overlaps(line)] == []


@pytest.mark.parametrize("count", [3, 10, 35])
def test_the_line_of_the_front_runs_through_no_label(count):
    chart = charts.scatter(made([f"stack_number_{number}" for number in range(count)]), "pope", "accuracy_object")
    sizes = [(charts.LETTER * len(mark.label), charts.LINE - 2) for mark in chart.marks]
    boxes = [
        labels.Box.around(mark.place.x, mark.place.y, *size) for mark, size in zip(chart.marks, sizes, strict=True)
    ]
    assert len(chart.front) > 3, "no power"
    lines = [
        labels.Box(left - 0.75, bottom - 0.75, right + 0.75, top + 0.75)
        for (left, top), (right, bottom) in itertools.pairwise(chart.front)
    ]
    covered = [
        mark.label for mark, box in zip(chart.marks, boxes, strict=True) if any(box.overlaps(line) for line in lines)
    ]
    assert covered == []


def test_every_table_and_chart_has_a_scroll_box_of_its_own():
    text = page.render(made(["vcd"]), {})
    wide = re.findall(r"<(table|svg)\b", text)
    assert len(wide) > 5
    assert len(re.findall(r'<div class="wide" tabindex="0"[^>]*>\s*<(table|svg)\b', text)) == len(wide)


def test_the_front_joins_what_nothing_cheaper_equals_and_up_is_better():
    results = made(["a", "b", "c"])
    cost = {"greedy": 1.0, "a": 2.0, "b": 3.0, "c": 4.0}
    value = {"greedy": 0.5, "a": 0.3, "b": 0.4, "c": 0.2}
    results = replace(
        results,
        outcomes=[answered(name, "control" if name == "greedy" else "stack", ratio=one) for name, one in cost.items()],
        scores=[scored(name, "chair_i", one, better=False) for name, one in value.items()],
    )
    found = charts.scatter(results, "pope", "chair_i")
    marks = {one.name: one for one in found.marks}
    assert marks["c"].y < marks["a"].y < marks["b"].y < marks["greedy"].y
    corners = set(found.front)
    assert {(marks[name].x, marks[name].y) for name in ("greedy", "a", "c")} <= corners
    assert (marks["b"].x, marks["b"].y) not in corners
    assert found.greedy == marks["greedy"].y


def test_bars_are_as_long_as_their_scores_and_greedy_is_a_line():
    results = made(["a", "b"])
    found = charts.levels(results, "pope", ["greedy", "b", "a"])
    assert [one.level for one in found.panels] == list(LEVELS)
    for panel in found.panels:
        scores = results.of("pope", f"accuracy_{panel.level}")
        widths = {bar.name: bar.width for bar in panel.bars}
        full = panel.right - panel.left
        assert widths == {name: pytest.approx(full * scores[name].found.value, abs=0.1) for name in widths}
        assert panel.greedy == pytest.approx(panel.left + widths["greedy"], abs=0.2)


def test_scores_that_are_not_known_are_neither_drawn_nor_called_zero():
    results = made(["a"])
    nothing = Interval(math.nan, math.nan, math.nan)
    results = replace(results, scores=[replace(one, found=nothing) for one in results.scores])
    text = page.render(results, {})
    assert charts.scatter(results, "pope", "accuracy_object") is None
    assert "nan" not in text.replace("isNaN", "").lower()
    assert "Nobody has both" in text


# Tables


def test_recall_and_length_stand_beside_chair_and_the_share_of_yes_beside_accuracy():
    told = [
        ("accuracy", True, 80),
        ("yes_ratio", None, 80),
        ("chair_i", False, 20),
        ("recall", True, 20),
        ("length", None, 20),
    ]
    results = made(["a"])
    scores = [scored(name, measure, better=aim, n=n) for name in ("greedy", "a") for measure, aim, n in told]
    every = {one.measure: one for one in scores}
    assert [one.measure for one in tables.beside(every["chair_i"], every)] == ["recall", "length"]
    assert [one.measure for one in tables.beside(every["accuracy"], every)] == ["yes_ratio"]
    shown = tables.overview(replace(results, scores=scores), "pope", ["greedy", "a"])
    titles = [one.title for one in shown.columns]
    assert [f"{name} told" for name, _, _ in told] == titles[: len(told)]
    assert sum(count for _, count in shown.groups) == len(titles)


def test_both_halves_stand_beside_habit_balanced_accuracy_at_every_level():
    told = [
        ("habit_balanced", "all", 80),
        ("habit_true", "all", 40),
        ("habit_breaking", "all", 40),
        ("habit_balanced_object", "object", 30),
        ("habit_true_object", "object", 15),
        ("habit_breaking_object", "object", 15),
        ("balanced_object", "object", 30),
    ]
    scores = [scored(who, measure, level=level, n=n) for who in ("greedy", "a") for measure, level, n in told]
    results = replace(made(["a"]), scores=scores)
    shown = [one.title for one in tables.overview(results, "pope", ["greedy", "a"]).columns]
    assert shown[:6] == [f"{name} told" for name, _, _ in told[:6]]
    assert "balanced_object told" not in shown
    own = next(one for one in tables.measures(results, "pope", ["greedy", "a"]) if one.name == "habit_balanced_object")
    assert [one.title for one in own.columns[5:7]] == ["habit_true_object told", "habit_breaking_object told"]


def test_every_measure_says_which_difference_could_have_been_seen():
    def cell(**changed):
        score = scored("a", change=0.01)
        test = replace(score.against_greedy, **changed)
        results = replace(made(["a"]), scores=[scored("greedy"), replace(score, against_greedy=test)])
        (table,) = tables.measures(results, "pope", ["greedy", "a"])
        at = [one.title for one in table.columns].index("visible from")
        assert table.rows[0].cells[at].label == tables.number(None), "greedy has no difference"
        return table.rows[1].cells[at].label

    assert cell() == "0.060", "six of 100 answers, where the interval is narrower"
    assert cell(difference=Interval(0.01, -0.2, 0.22)) == "0.210"
    assert cell(n=4) == "none"
    assert cell(p=math.nan) == tables.number(None)


# Examples


def test_as_many_gains_as_losses_are_shown_and_every_stack_has_its_turn():
    plain = ["yes"] * 30 + ["no"] * 30
    better = ["yes"] * 60
    worse = ["no"] * 60
    found = source({"greedy": plain, "up": better, "up2": better, "down": worse, "same": plain})
    chosen = examples.choose(found.answers, ["up", "up2", "down", "same"], found.measures, "ours", each=4)
    assert (chosen.gains, chosen.losses, chosen.neither) == (60, 30, 0)
    assert [one.effect for one in chosen.examples] == ["gain"] * 4 + ["loss"] * 4
    assert {one.stack for one in chosen.examples[:4]} == {"up", "up2"}
    assert len({one.item.id for one in chosen.examples}) == 8
    again = examples.choose(found.answers, ["up", "up2", "down", "same"], found.measures, "ours", each=4)
    other = examples.choose(found.answers, ["up", "up2", "down", "same"], found.measures, "ours", each=4, seed=1)
    assert chosen == again
    assert chosen != other
    found = source({"greedy": ["yes"] * 2 + ["no"] * 9, "a": ["no"] * 2 + ["yes"] * 9})
    few = examples.choose(found.answers, ["a"], found.measures, "ours", each=4)
    assert [one.effect for one in few.examples] == ["gain"] * 2 + ["loss"] * 2


def test_an_example_puts_greedy_first_and_together_what_is_the_same():
    found = source({"greedy": ["no"], "a": ["yes"], "pba": ["yes"], "b": ["maybe"], "sampling": ["what"]})
    one = examples.choose(found.answers, ["a", "b"], found.measures, "ours").examples[0]
    assert [(reply.systems, reply.effect) for reply in one.replies] == [
        (("greedy",), None),
        (("a", "pba"), "gain"),
        (("b",), "neither"),
    ]


def test_words_that_a_suite_calls_invented_are_marked():
    found = source({"greedy": ["a cat"], "a": ["yes"]}, invented=lambda item, text: [(2, 5)] if "cat" in text else [])
    text = page.render(made(["a"]), {"pope": found})
    assert 'a <mark title="not in the picture">cat</mark>' in text
    assert examples.pieces("abcdef", [(2, 3), (1, 4), (9, 12)]) == tuple(
        examples.Piece(*one) for one in (("a", False), ("bcd", True), ("ef", False))
    )


@pytest.mark.parametrize(
    ("truth", "words"),
    [("yes", "yes"), (True, "yes"), (["cat", "dog"], "cat, dog"), ({"ours": ["cat"], "official": []}, "cat")],
)
def test_truths_are_told_in_words(truth, words):
    assert examples.truth(truth, "ours") == words


# The page


@pytest.mark.parametrize("count", [3, 35])
def test_every_stack_is_in_every_part_of_the_page(count):
    stacks = [f"stack{number}" for number in range(count)]
    text = page.render(made(stacks), {})
    scatter, levels = charts_of(text)
    assert set(stacks) | set(CONTROLS) <= drawn(scatter)
    assert set(stacks) | set(CONTROLS) <= drawn(levels)
    for stack in stacks:
        assert f'<tr data-system="{stack}" data-role="stack"><th scope="row">{stack}</th><td class="verdict' in text
        assert text.count(f'<tr class="stack" data-system="{stack}"') == 1 + len(LEVELS)


def test_the_page_says_what_was_run_what_was_left_out_and_who_refused():
    results = made(["vcd", "pai"], without=["olm", "pba"])
    refusal = SystemRefusal(0, "StrategyRefused", "no <attention> scores")
    outcomes = [replace(one, refused=refusal, answers=0) if one.system == "pai" else one for one in results.outcomes]
    text = page.render(replace(results, outcomes=outcomes), {})
    told = html.unescape(re.sub(r"<[^>]*>", " ", text))
    for words in (
        "some/model",
        "seed",
        "POPE, 100 items about 50 pictures",
        "parser ours",
        "torch 2.13.0",
        "Linux x86_64",
    ):
        assert words in told
    assert "olm, pba (of " in told
    assert "no &lt;attention&gt; scores" in text
    assert "1 refused" in told


def test_the_page_is_whole_and_needs_nothing_else():
    found = source({"greedy": ["no"] * 4, "vcd": ["yes"] * 4})
    text = page.render(made(["vcd"], suites=("pope", "pope2")), {"pope": found})
    checked = Checked(text)
    assert checked.open == []
    assert all(address.startswith(("data:image/png;base64,", "#suite-")) for address in checked.addresses)
    assert any(address.startswith("data:") for address in checked.addresses)
    assert not any(word in text for word in ("http://", "https://", "@import", "url("))
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert len(charts_of(text)) == 4
    for chart in charts_of(text):
        named = [chart.find(f"./*[@id='{one}']").text for one in chart.get("aria-labelledby").split()]
        assert chart.get("role") == "img"
        assert len(named) == 2
        assert all(named)


def test_hostile_words_stay_words():
    items = [Item("q" + HOSTILE, HOSTILE, HOSTILE, HOSTILE, "object", HOSTILE)]
    found = source({"greedy": [HOSTILE], "vcd": [HOSTILE + "!"]}, items)
    measure = replace(RIGHT, count=each(lambda said: (float(said.text.endswith("!")), 1.0)))
    model = {**made([]).manifest["model"], "id": HOSTILE}
    text = page.render(made(["vcd"], model=model), {"pope": replace(found, measures=(measure,))})
    checked = Checked(text)
    assert text.count("&lt;script&gt;alert(1)") >= 7, "prompt, truth, both answers, the item and the model are shown"
    assert checked.tags.count("script") == 1
    assert checked.handlers == []
    assert all(address.startswith("data:") for address in checked.addresses)
    assert not {"\u202e", "\x00"} & set(text)


def test_a_picture_that_is_gone_is_told_and_does_not_stop_the_report():
    def gone(name):
        raise InputError(f"{name} is not there")

    found = replace(source({"greedy": ["no"], "vcd": ["yes"]}), picture=gone)
    assert "p0 is not there" in page.render(made(["vcd"]), {"pope": found})


def test_the_same_run_gives_the_same_page():
    found = source({"greedy": ["no"] * 9, "vcd": ["yes"] * 9})
    assert page.render(made(["vcd"]), {"pope": found}) == page.render(made(["vcd"]), {"pope": found})


@dataclass(frozen=True)
class Asking(quick_run.Toy):
    """The toy with something to measure."""

    def measures(self, parser):
        return (RIGHT,)


def test_the_report_of_a_run_is_written_from_its_folder_with_pictures_and_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Asking, "tests"))
    record = quick_run.run(tmp_path / "run", quick_run.plan(pictures=40))
    told = record.manifest["systems"]
    record = replace(
        record, manifest={**record.manifest, "systems": {**told, "sampling": {**told["sampling"], "role": "stack"}}}
    )
    page.write(record, score(record), record.folder / "report-ours.html")
    text = (record.folder / "report-ours.html").read_text(encoding="utf-8")
    Checked(text)
    assert text.count('<article class="example">') >= 2
    assert text.count('src="data:image/png;base64,') >= 2
    said = {one.text for one in record.read_answers("sampling", "toy")}
    assert any(f'dir="auto">{one}<' in text for one in said)
    assert "Of 1 stack: 1 " in text
    assert not list(record.folder.glob(".*draft"))


# In a browser

PROBE = """<script>
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const first = () => table.tBodies[0].rows[1].dataset.system;
  table.querySelectorAll("thead tr:last-child button")[1].click();
  const worst = table.tBodies[0].rows[0].dataset.system;
  table.querySelectorAll("thead tr:last-child button")[1].click();
  const sorted = [worst, table.tBodies[0].rows[0].dataset.system];
  const shown = () => [...table.tBodies[0].rows].filter((row) => row.offsetParent).length;
  const all = shown();
  const input = document.querySelector("[type=search]");
  input.value = "stack1"; input.dispatchEvent(new Event("input", {bubbles: true}));
  const few = shown();
  input.value = ""; input.dispatchEvent(new Event("input", {bubbles: true}));
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  parent.postMessage({width: innerWidth, sorted, all, few, paper: getComputedStyle(document.body).backgroundColor,
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth}, "*");
});
</script>"""
FRAMES = """<!DOCTYPE html><script>
addEventListener("message", (event) => { document.body.dataset["w" + event.data.width] = JSON.stringify(event.data); });
</script><body>"""


def browsed(folder, *flags):
    """What a browser finds in the page at two widths, and what it complains about."""
    frames = "".join(
        f'<iframe src="page.html" width="{width}" height="900" frameborder="0"></iframe>' for width in (360, 1200)
    )
    (folder / "frames.html").write_text(FRAMES + frames, encoding="utf-8")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=4000")
    command = [
        BROWSER,
        *fixed,
        f"--user-data-dir={folder}/profile",
        *flags,
        "--dump-dom",
        (folder / "frames.html").as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True)
    found = re.findall(r'data-w(\d+)="([^"]*)"', done.stdout)
    return {int(width): json.loads(html.unescape(told)) for width, told in found}, re.findall(
        r".*CONSOLE.*", done.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("count", [3, 10, 35])
def test_a_browser_shows_it_in_light_and_dark_wide_and_narrow(tmp_path, count):
    found = source({"greedy": ["no " + "x" * 300] * 9, "stack1": ["yes"] * 9})
    stacks = [f"stack{number}" for number in range(count)]
    text = page.render(made(stacks), {"pope": found})
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    papers = []
    for flags in ((), ("--blink-settings=preferredColorScheme=0",)):
        seen, complaints = browsed(tmp_path, *flags)
        assert complaints == []
        assert set(seen) == {360, 1200}
        for told in seen.values():
            assert told["over"] <= 0
            assert told["sorted"] == [stacks[-1], "greedy"]
            assert told["all"] == count + len(CONTROLS)
            assert told["few"] == 1 + sum("stack1" in one for one in stacks)
        papers += {told["paper"] for told in seen.values()}
    assert papers == ["rgb(251, 251, 249)", "rgb(21, 22, 26)"]
