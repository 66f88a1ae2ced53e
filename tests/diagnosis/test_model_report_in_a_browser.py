"""Pages of models in a browser, in light and dark, on a phone and on a desk: nothing sticks out, and a keyboard is enough."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, Browser
from diagnosed_models import CASES, make_model_diagnosis
from page_checks import FOCUSED, PALE, STICKS_OUT, WIDE, WIDTHS, open_page, press

from lvlm_guard.diagnosis.report.writing import write_model_report

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
COVERED = """[...document.querySelectorAll('.chart g')].filter((node) => {
    const [mark, chart] = [node.getBoundingClientRect(), node.ownerSVGElement.getBoundingClientRect()];
    return mark.left < chart.left || mark.right > chart.right || mark.top < chart.top || mark.bottom > chart.bottom;
}).map((node) => node.textContent)"""
"""Marks that stick out of their chart."""


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each case, and of a model with a long name."""
    made = {name: make() for name, make in CASES.items()}
    made["long name"] = make_model_diagnosis(
        evidence={"model": "m" * 120, "split": "s" * 120, "sound_model": "b" * 120}
    )
    folder = tmp_path_factory.mktemp("pages")
    for name, diagnosis in made.items():
        write_model_report(diagnosis, folder / name).rename(folder / f"{name}.html")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*CASES, "long name"])
def test_nothing_sticks_out_and_all_can_be_read(browser, pages, name, width, scheme):
    open_page(browser, pages / f"{name}.html", width, scheme)
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert browser.run(WIDE) <= width
    assert browser.run(f"({STICKS_OUT})({width})") == []
    assert browser.run(PALE) == []
    assert browser.run(COVERED) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_keyboard_reaches_everything_from_top_to_bottom(browser, pages, width):
    open_page(browser, pages / "no profile.html", width)
    visited = []
    for _ in range(40):
        press(browser, "Tab", 9)
        focused = browser.run(FOCUSED)
        if focused is None:
            break
        visited.append(focused)
    assert [name for name, is_seen, _ in visited if not is_seen] == []
    names = [name for name, _, _ in visited]
    assert names[0] == "2 things could not be looked at"
    assert {"Exact checks", "Chart of gains", "Heat map of gains", "What silencing brings", "The same as a table"} <= {
        *names
    }
    tops = [top for _, _, top in visited]
    assert tops == sorted(tops)


def test_the_link_to_what_is_missing_leads_there(browser, pages):
    open_page(browser, pages / "no profile.html", 400)
    browser.run("document.querySelector('a[href]').click()")
    assert browser.run("document.querySelector(':target').textContent") == "What could not be looked at"
