"""Pages of reports in a browser, in light and dark, on a phone and on a desk: nothing sticks out, and a keyboard is enough."""

from __future__ import annotations

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from diagnosed_answers import make_diagnosis, make_word
from page_checks import FOCUSED, PALE, STICKS_OUT, WIDE, WIDTHS, open_page, press
from PIL import Image

from lvlm_guard.diagnosis import Cause
from lvlm_guard.diagnosis.report.writing import write_index, write_report

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
MANY = 200
PANEL = "[...document.querySelectorAll('.panel')].filter((node) => node.offsetParent).map((node) => node.id)"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of many answers: photographs and drawings, short and long answers, long words."""
    folder = tmp_path_factory.mktemp("report")
    several = [make_one(number) for number in range(MANY)]
    for number in (0, 1, MANY - 1):
        write_report(several[number], folder, number, MANY)
    write_index(several, folder, MANY)
    return folder


def make_one(number):
    """Return two words with maps that are chosen apart; every third answer is about a photograph, every fifth has a very long word."""
    text = "a red mug" if number % 5 else "a red " + "w" * 90
    cause = Cause("prior", "Without the picture the model says the same, with probability 0.93.")
    words = (
        make_word("a", 0, level=None, by="entropy", margin=None),
        make_word("red", 2, level="attribute", doubt=0.9371, is_doubtful=True, causes=(cause,)),
        make_word(text[6:], 6, doubt=1.0, is_doubtful=True, causes=(cause,)),
    )
    maps = make_diagnosis().maps
    shared = {"attended": {2: maps.attended[1], **maps.attended}, "occlusion": {2: maps.occlusion[1], **maps.occlusion}}
    levels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((900, 640) if number % 3 == 0 else (60, 40))
    maps = type(maps)(**{**vars(maps), **shared})
    return make_diagnosis(answer=text, words=words, maps=maps, pictures=(picture,), prompt=f"what is {number} ?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["answer-001", "answer-002", "index"])
def test_nothing_sticks_out_and_all_can_be_read(browser, folder, name, width, scheme):
    open_page(browser, folder / f"{name}.html", width, scheme)
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert browser.run(WIDE) <= width
    assert browser.run(f"({STICKS_OUT})({width})") == []
    assert browser.run(PALE) == []


def test_what_is_pale_or_too_wide_is_seen(browser, tmp_path):
    """The checks see what they look for."""
    page = tmp_path / "bad.html"
    phone = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    page.write_text(f"{phone}<main style='color: #aaa; background: #fff'><p style='width: 600px'>pale</p></main>")
    open_page(browser, page, 400)
    assert browser.run(WIDE) > 400
    assert len(browser.run(f"({STICKS_OUT})(400)")) == 1
    assert len(browser.run(PALE)) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_keyboard_is_enough(browser, folder, width):
    open_page(browser, folder / "answer-001.html", width)
    visited = []
    for _ in range(60):
        press(browser, "Tab", 9)
        focused = browser.run(FOCUSED)
        if focused is None:
            break
        visited.append(focused)
        if focused[0].startswith("word-") and len(visited) < 4:
            before = browser.run(PANEL)
            press(browser, "ArrowUp", 38)
            assert browser.run(PANEL) != before
            assert browser.run(FOCUSED)[1]
    assert [name for name, is_seen, _ in visited if not is_seen] == []
    names = [name for name, _, _ in visited]
    assert names[0] == "All answers"
    assert names[1].startswith("word-")
    assert "Every word with its figures" in names
    tops = [top for _, _, top in visited]
    assert width > min(WIDTHS) or tops == sorted(tops)  # in one column, the order of the keyboard is that of the eye


def test_a_word_is_chosen_by_a_finger(browser, folder):
    open_page(browser, folder / "answer-001.html", 400)
    before = browser.run(PANEL)
    browser.run(
        "[...document.querySelectorAll('label.word')].find((node) => node.textContent.startsWith('red')).click()"
    )
    assert before == ["panel-2"]
    assert browser.run(PANEL) == ["panel-1"]


def test_the_index_leads_to_every_answer_and_back(browser, folder):
    open_page(browser, folder / "index.html", 400)
    links = browser.run("[...document.querySelectorAll('.entries a')].map((node) => node.getAttribute('href'))")
    assert links == [f"answer-{number:03d}.html" for number in range(1, MANY + 1)]
    assert browser.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    browser.run("document.querySelector('.entries li:last-child a').click()")
    browser.wait("document.title.includes('mug') && document.readyState === 'complete'")
    assert browser.run("location.pathname.split('/').pop()") == links[-1]
    browser.run("document.querySelector('main a').click()")
    browser.wait("document.title.includes('answers')")
