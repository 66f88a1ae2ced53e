"""The demo is a bench run: its tables, its JSON and its page show the figures of the run, with pictures and marks."""

import io
import json
import math
from html.parser import HTMLParser

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lvlm_guard import Guard, Stack
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.reporting import page, results
from lvlm_guard.bench.running import store
from lvlm_guard.bench.scoring.intervals import Interval, format_interval, interval, paired_difference
from lvlm_guard.cli import app, demonstration, demonstration_tables
from lvlm_guard.errors import Refused, StrategyRefused
from lvlm_guard.testbed.figures import CARD_FIGURES, DEMO_FIGURES
from lvlm_guard.testbed.model import DEMO_STACK
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.sheet import oddity

VOID = {"meta", "img", "br", "link", "input", "hr"}
SCENES = 12


def demo(*arguments):
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds a run in `run`, its page and what the terminal showed."""
    place = tmp_path_factory.mktemp("demo")
    (place / "icd.toml").write_text('[[stack]]\nname = "icd"\nparams = {alpha = 2.0}\n')
    common = ("--stack", place / "icd.toml", "--scenes", SCENES, "--out", place / "run")
    (place / "terminal.txt").write_text(demo(*common, "--page", place / "demo.html"), encoding="utf-8")
    (place / "figures.json").write_text(demo(*common, "--json"), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def record(folder):
    return store.read(folder / "run")


@pytest.fixture(scope="module")
def scored(record):
    return results.score(record, resamples=demonstration.RESAMPLES)


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "demo.html").read_text(encoding="utf-8")


def answers(record, split, system):
    return record.read_answers(system, split)


def test_every_figure_is_the_suites_with_paired_intervals_over_scenes(record, scored):
    for split in demonstration.SPLITS:
        compared = demonstration_tables.compare(scored, split)
        assert set(compared) == set(DEMO_FIGURES)
        plain, guarded = (answers(record, split, system) for system in ("greedy", "icd"))
        for name, shown in compared.items():
            measure = DEMO_FIGURES[name].measure
            before, after = measure.totals(plain), measure.totals(guarded)
            assert shown.plain == interval(before, measure.statistic)
            assert shown.guarded == interval(after, measure.statistic)
            assert shown.difference == paired_difference(before, after, measure.statistic)
            assert shown.n == len(measure.rows(plain)[0]) > 0


def test_the_stack_changed_something(scored):
    changes = [
        shown.difference.value
        for split in demonstration.SPLITS
        for shown in demonstration_tables.compare(scored, split).values()
    ]
    assert any(abs(change) > 0.01 for change in changes)


def test_the_terminal_shows_every_figure(folder, scored):
    console = Console(record=True, width=200, file=io.StringIO())
    demonstration_tables.show(scored, console)
    wide = console.export_text()
    for split in demonstration.SPLITS:
        assert f"{split}: {SCENES} scenes, icd against plain" in wide
        for name, shown in demonstration_tables.compare(scored, split).items():
            change = shown.difference
            assert DEMO_FIGURES[name].title in wide
            assert format_interval(change, shown.scenes, signed=True) in wide
    narrow = (folder / "terminal.txt").read_text(encoding="utf-8")
    for words in (demonstration_tables.LIMIT, "ms per token", "decode forwards", "rows per", "--scenes 300"):
        assert words in narrow


def test_the_cost_is_that_of_both_splits(record, scored):
    costs = demonstration_tables.costs(scored)
    batches = [batch for split in record.suites for batch in record.costs("icd", split)]
    tokens, seconds = (sum(batch[name] for batch in batches) for name in ("tokens", "seconds"))
    assert costs["guarded"].tokens == tokens
    assert costs["guarded"].ms_per_token == pytest.approx(1000 * seconds / tokens)
    assert (costs["plain"].prefill, costs["plain"].decode, costs["plain"].rows) == (1.0, 1.0, 1.0)
    assert (costs["guarded"].prefill, costs["guarded"].decode, costs["guarded"].rows) == (2.0, 1.0, 2.0)


def test_the_same_folder_resumes_and_its_json_has_the_same_figures(folder, scored):
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert figures == json.loads(json.dumps(demonstration_tables.to_plain(scored))), "answered again"
    assert list(figures) == ["model", "stack", "scenes", "splits", "cost"]
    assert (figures["model"], figures["stack"], figures["scenes"]) == ("LlavaForConditionalGeneration", "icd", SCENES)
    assert set(figures["splits"]["iid"]["object"]["difference"]) == {"value", "low", "high", "n"}
    assert set(figures["cost"]["plain"]) == {"ms_per_token", "tokens", "forwards_per_token", "rows_per_forward"}


@pytest.mark.slow
def test_a_stack_that_changes_nothing_shows_no_difference(tmp_path):
    neutral = tmp_path / "neutral.toml"
    neutral.write_text('[[stack]]\nname = "icd"\nparams = {alpha = 0.0}\n')
    for levels in json.loads(demo("--stack", neutral, "--scenes", SCENES, "--json"))["splits"].values():
        assert set(levels) == set(DEMO_FIGURES)
        for compared in levels.values():
            assert compared["plain"] == compared["guarded"]
            assert compared["plain"]["n"] == compared["difference"]["n"] > 0
            assert [compared["difference"][name] for name in ("value", "low", "high")] == [0.0, None, None]


def test_a_stack_that_refuses_is_named_with_its_reason(monkeypatch):
    generate = Guard.generate

    def refuse(guard, **arguments):
        if guard.stack.names == ("icd",):
            raise StrategyRefused("icd: no instruction here")
        return generate(guard, **arguments)

    monkeypatch.setattr(Guard, "generate", refuse)
    result = CliRunner().invoke(app, ["demo", "--stack", "icd", "--scenes", "2", "--no-page"])
    assert isinstance(result.exception, Refused)
    assert "icd cannot answer counterfactual (StrategyRefused): icd: no instruction here" in str(result.exception)


class Checked(HTMLParser):
    """Every element is closed in order; collects addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def test_the_page_is_whole_and_needs_nothing_else(text):
    parser = Checked()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert {"svg", "table", "mark", "img"} <= set(parser.tags)
    assert all(address.startswith(("data:image/png;base64,", "#suite-")) for address in parser.addresses)
    assert not any(word in text for word in ("http://", "https://", "@import", "url("))
    assert "prefers-color-scheme" in text
    assert "image-rendering: pixelated" in text


def test_the_page_shows_the_figures_of_the_terminal(text, scored):
    for split in demonstration.SPLITS:
        for shown in demonstration_tables.compare(scored, split).values():
            change = shown.difference
            for score in (shown.plain, shown.guarded):
                assert format_interval(score, shown.scenes) in text
            assert format_interval(change, shown.scenes, signed=True) in text
    assert "say nothing about other models" in text
    assert f"{demonstration_tables.costs(scored)['plain'].prefill:.2f}" in text


def test_examples_have_pictures_both_answers_marks_and_the_broken_habit(text, record, scored):
    broken = 0
    for split in demonstration.SPLITS:
        section = page.build_section(scored, split, page.build_source(record, scored, split))
        assert section.chosen.examples
        plain, guarded = ({said.item.id: said.text for said in answers(record, split, s)} for s in ("greedy", "icd"))
        for example in section.chosen.examples:
            drawn = Scenes(split=split).draw(int(example.item.image.rsplit("-", 1)[1]))
            assert section.pictures[drawn.name].data in text
            assert section.remarks[example.item.id] == (oddity(drawn.broken) if drawn.broken else "")
            broken += f"<strong>{section.remarks[example.item.id]}</strong>" in text
            replies = ["".join(piece.text for piece in reply.pieces) for reply in example.replies]
            assert replies == [plain[example.item.id], guarded[example.item.id]]
    assert broken > 0
    assert '<mark title="not in the picture">' in text


def test_the_page_marks_what_is_not_in_the_picture():
    item = Item("a", "iid-0-0", "describe", "there is a red egg and a blue moon .", "object", "caption")
    text = "a red mug and a moon ."
    spans = Scenes(split="iid").invented(item, text)
    assert [text[start:stop] for start, stop in spans] == ["red mug"]
    assert Scenes().invented(Item("b", None, "p", "yes", "object", "existence"), "a mug") == ()


def test_the_page_is_small_and_no_run_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo("--scenes", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]
    assert (tmp_path / "demo.html").stat().st_size < 1_000_000


def test_the_demos_stack_can_be_read():
    assert Stack.read(DEMO_STACK).names is not None


def test_a_stack_without_strategies_has_a_name():
    plan = demonstration.build_plan(None, 3)
    assert [system.role for system in plan.systems] == ["control", "stack"]
    assert {name: chosen.suite.count for name, chosen in plan.suites.items()} == dict.fromkeys(demonstration.SPLITS, 3)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "unclear"), (0, 0, "unclear"),
        (math.nan, math.nan, "unclear"),
    ],
)  # fmt: skip
def test_a_difference_is_called_by_its_interval(low, high, verdict):
    change = Interval((low + high) / 2, low, high)
    assert DEMO_FIGURES["object"].verdict(change) == verdict
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert DEMO_FIGURES["caption"].verdict(change) == opposite[verdict]


def said(kind, truth, text, level="object", **extra):
    values = {"negative": None, "habit": None, "broken": None, **extra}
    return AnsweredItem(
        Item(f"{kind} {truth} {text} {extra}", "counterfactual-0-0", "", truth, level, kind, extra=values), text
    )


def test_figures_choose_their_own_answers():
    spoken = [
        said("relation", "yes", "no", "relation", habit="no"),
        said("choice", "left", "left", "relation", habit="left"),
        said("vertical", "yes", "yes", "relation"),
        said("colour", "red", "red", "attribute", habit="red"),
        said("caption", "in this kitchen a red mug .", "a blue mug and a red pan .", broken="attribute"),
        said("caption", "in this kitchen a red mug and a blue egg .", "a red mug and a blue pan .", broken="object"),
    ]
    found = {name: figure.measure.totals(spoken).tolist() for name, figure in CARD_FIGURES.items()}
    # (right, all) of no and yes, or right and left, where habit is right, then where it is wrong
    assert found["relation"] == [[0, 0, 1, 1, 0, 0, 0, 1]]
    assert (found["left_right"], found["choice"]) == ([[0, 0, 0, 0, 0, 0, 0, 1]], [[0, 0, 1, 1, 0, 0, 0, 0]])
    assert (found["vertical"], found["colour"]) == ([[1, 1]], [[0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]])
    assert found["relation_true"] == found["choice"]
    assert found["relation_breaking"] == found["left_right"]
    assert found["caption"] == [[2.0, 4.0]]
    assert found["caption_recall"] == [[2.0, 3.0]]
    assert found["caption_colour"] == [[1.0, 2.0]]
    levels = [figure.level for figure in DEMO_FIGURES.values()]
    assert levels == [*["all levels"] * 3, *["object"] * 3, *["attribute"] * 3, *["relation"] * 3, *["caption"] * 5]


def test_figures_are_computed_from_raw_answers():
    spoken = [
        said("existence", "yes", "yes", habit="yes"),
        said("existence", "yes", "yes", habit="no"),
        said("existence", "no", "yes", negative="adversarial", habit="yes"),
        said("existence", "no", "no", negative="random", habit="no"),
        said("colour", "red", "red", "attribute", habit="red"),
        said("colour", "blue", "red", "attribute", habit="red"),
        said("choice", "left", "right", "relation", habit="right"),
        said("choice", "left", "it is left .", "relation", habit="left"),
        said("choice", "right", "right", "relation", habit="right"),
        said("choice", "right", "it is right .", "relation", habit="left"),
        said("vertical", "no", "yes", "relation"),
        said("caption", "in this kitchen there is a red mug .", "there is a blue mug and a red pan ."),
    ]
    values = {name: figure.measure.value(spoken) for name, figure in CARD_FIGURES.items()}
    assert (values["object_adversarial"], values["object_random"]) == (0.5, 1.0)
    assert (values["object"], values["object_true"], values["object_breaking"]) == (0.75, 1.0, 0.5)
    assert (values["colour"], values["colour_true"], values["attribute_breaking"]) == (0.5, 1.0, 0.0)
    assert (values["choice"], values["relation"], values["vertical"]) == (0.75, 0.75, 0.0)
    assert (values["all"], values["all_true"], values["all_breaking"]) == pytest.approx((2 / 3, 1.0, 1 / 3))
    assert (values["caption_spoilt"], values["caption"], values["caption_recall"]) == (1.0, 0.5, 1.0)
    assert values["caption_colour"] == 1.0
    assert {measure.name: measure.value(spoken) for measure in Scenes().measures("ours")}["accuracy"] == 0.6
