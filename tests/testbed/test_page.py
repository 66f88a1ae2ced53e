"""The demo's page: what it shows, what it marks, and that it needs nothing else."""

from html.parser import HTMLParser

import pytest

from lvlm_guard.testbed import page
from lvlm_guard.testbed.demo import DemoResult, GenerationCost
from lvlm_guard.testbed.evaluate import Answer
from lvlm_guard.testbed.measures import DEMO_MEASURES, compare
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testbed.world.language import caption
from lvlm_guard.testbed.world.questions import scored_questions
from lvlm_guard.testbed.world.scenes import scenes

VOID = {"meta", "img", "br", "link", "input", "hr"}
SAME = "in this place there is nothing ."


def absent(scene):
    return next(name for name in CATEGORIES if name not in scene.present)


def broken(scene):
    return scene.broken.level if scene.broken else None


def answers(chosen, said, short="yes"):
    asked = [
        Answer(scene.name, scene.split, q.level, q.kind, q.text, q.answer, short, q.negative, q.habit, broken(scene))
        for scene in chosen
        for q in scored_questions(scene)
    ]
    described = [
        Answer(s.name, s.split, "caption", "caption", "describe this image .", caption(s), text, broken=broken(s))
        for s, text in zip(chosen, said, strict=True)
        if broken(s) != "relation"
    ]
    return (*asked, *described)


@pytest.fixture
def chosen():
    return scenes("counterfactual", 3)


def result(chosen, plain, guarded, **short):
    before, after = answers(chosen, plain, **short), answers(chosen, guarded, short="no")
    return DemoResult(
        model="Model",
        stack="vcd",
        scenes=len(chosen),
        splits={"counterfactual": compare(before, after)},
        plain_cost=GenerationCost(1.25, 10),
        guarded_cost=GenerationCost(2.75, 10, 2.0, 1.0, 2.0),
        answers={"plain": before, "guarded": after},
    )


@pytest.fixture
def measured(chosen):
    plain = [SAME, f"in this place there is a red {absent(chosen[1])} .", SAME]
    return result(chosen, plain, [SAME, caption(chosen[1]), SAME])


class Checked(HTMLParser):
    """Every element is closed in order; collects addresses and marks."""

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


def test_the_page_is_whole_and_needs_nothing_else(measured):
    text = page.render(measured)
    parser = Checked()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.tags
    assert {"svg", "circle", "table", "mark"} <= set(parser.tags)
    assert all(address.startswith("data:image/png;base64,") for address in parser.addresses)
    assert not any(word in text for word in ("http://", "https://", "@import", "url("))
    assert "prefers-color-scheme" in text
    assert "image-rendering: pixelated" in text


def test_the_page_shows_captions_and_figures(measured, chosen):
    text = page.render(measured)
    assert caption(chosen[1]) in text
    assert SAME in text
    for compared in measured.splits["counterfactual"].values():
        assert f"{compared.plain.value:.3f} [{compared.plain.low:.3f}" in text
        assert f"{compared.guarded.value:.3f} [{compared.guarded.low:.3f}" in text
    assert "1.25" in text
    assert "2.75" in text
    assert "say nothing about other models" in text


def test_the_page_marks_what_is_not_in_the_picture(measured, chosen):
    assert f'<mark title="not in the picture">red {absent(chosen[1])}</mark> .' in page.render(measured)
    present = set(chosen[0].present)
    assert page.marked(caption(chosen[0]), present) == (page.Piece(caption(chosen[0]), invented=False),)
    pieces = page.marked("a red mug and a moon .", {"moon"})
    assert [(one.text, one.invented) for one in pieces] == [("a ", False), ("red mug", True), (" and a moon .", False)]


def test_each_broken_habit_in_turn_and_differing_answers_first():
    many = scenes("counterfactual", 30)
    said = [SAME] * 30
    said[9] = f"in this place there is a red {absent(many[9])} ."
    shown = page.examples(result(many, said, [SAME] * 30, short="no"), "counterfactual")
    assert len(shown) == page.EXAMPLES
    assert [one.name for one in shown[:3]] == [many[at].name for at in (9, 1, 2)]
    assert [many[int(one.name.rsplit("-", 1)[1])].broken.level for one in shown] == [
        "object",
        "attribute",
        "relation",
    ] * 4
    assert (shown[0].change, shown[1].change) == ("names other things", "same answers")
    assert all(len(one.replies) <= page.QUESTIONS for one in shown)
    assert len(page.examples(result(many, said, said), "counterfactual", 2)) == 2


def test_a_scene_with_a_broken_order_shows_questions_and_no_caption(measured, chosen):
    shown = next(one for one in page.examples(measured, "counterfactual") if one.name == chosen[2].name)
    pair = chosen[2].broken
    assert shown.captions is None
    assert shown.truth == caption(chosen[2])
    assert shown.oddity == f"{pair.subject} right of {pair.expected}"
    assert shown.change == "answers differently"
    asked = {reply.question: reply for reply in shown.replies}
    names = {pair.subject, pair.expected}
    sideways = [words for words in asked if names <= set(words.split()) and {"left", "right"} & set(words.split())]
    assert len(sideways) == 3
    text = page.render(measured)
    assert f"<strong>{shown.oddity}</strong>" in text
    assert all(question in text for question in asked)


def test_the_broken_habit_is_said_under_every_picture_that_breaks_one(measured, chosen):
    first, second = chosen[0].broken, chosen[1].broken
    told = {one.name: one.oddity for one in page.examples(measured, "counterfactual")}
    assert told[chosen[0].name] == f"{first.subject} without its {first.expected}"
    assert told[chosen[1].name] == f"{second.subject} not {second.expected}"
    plain = scenes("iid", 2)
    before, after = answers(plain, [SAME] * 2), answers(plain, [SAME] * 2, short="no")
    split = {"iid": compare(before, after)}
    cost = GenerationCost(1.0, 1)
    shown = page.examples(DemoResult("Model", "vcd", 2, split, cost, cost, {"plain": before, "guarded": after}), "iid")
    assert [one.oddity for one in shown] == ["", ""]


def test_the_table_goes_by_level(measured):
    table = page.render(measured).split('<table class="figures">')[1].split("</table>")[0]
    assert table.count("<tbody>") == 4
    order = [table.index(f">{title}<") for title in (DEMO_MEASURES[name].title for name in DEMO_MEASURES)]
    assert order == sorted(order)


def test_answers_are_escaped(chosen):
    said = ["<script>alert(1)</script>"] * 3
    text = page.render(result(chosen, said, said, short='<b title="x">'))
    assert "<script" not in text
    assert "<b " not in text
    assert "&lt;script&gt;" in text


def test_the_page_survives_scores_that_are_not_known(chosen):
    text = page.render(result(chosen, [""] * 3, [""] * 3))
    assert "nan" in text
    assert 'cx="nan"' not in text
    assert "(nothing)" in text


def test_the_page_is_small_and_written_whole(tmp_path):
    many = scenes("counterfactual", 30)
    page.write(result(many, [SAME] * 30, [SAME] * 30), tmp_path / "demo.html")
    assert [one.name for one in tmp_path.iterdir()] == ["demo.html"]
    assert (tmp_path / "demo.html").stat().st_size < 1_000_000
