"""The page at /, in a browser that reaches nothing but this machine."""

import os
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, Browser
from served import ask as write_messages
from served import draw_picture

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
PICTURES = os.environ.get("PAGE_PICTURES")
"""A folder for pictures of the page, to be looked at."""
WIDE = "document.documentElement.scrollWidth - window.innerWidth"
NAMELESS = """[...document.querySelectorAll('input, textarea, select, button')].filter(
    (field) => !(field.labels?.length || field.textContent.trim())).map((field) => field.id)"""
CONTRASTS = """(() => {
    const read = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (colour) => { const [r, g, b] = read(colour).map((value) => value / 255).map(
        (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = (node) => { for (; node; node = node.parentElement) {
        const colour = getComputedStyle(node).backgroundColor;
        if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('h1, h2, p, label, del, ins, button, textarea, select')]
        .filter((node) => node.offsetParent && node.textContent.trim() && !node.disabled)
        .map((node) => { const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)]; })
        .filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def look(browser, name):
    if PICTURES:
        browser.take_picture(Path(PICTURES) / f"{name}.png")


def ask(browser, folder, seed):
    path = folder / "picture.png"
    draw_picture(seed).save(path)
    browser.wait("document.getElementById('stack').options.length > 0")
    browser.choose_file("#file", path)
    browser.wait("!document.getElementById('preview').hidden")
    browser.run("document.getElementById('question').value = 'what is in the picture ?'")
    browser.run("document.getElementById('tokens').value = 16")
    browser.run("document.getElementById('stack').value = 'both'")
    browser.run("document.getElementById('ask').click()")
    browser.wait("document.getElementById('status').textContent.startsWith('Done')")


@pytest.mark.parametrize("width", [1000, 400])
def test_a_picture_is_asked_about_plain_and_guarded(browser, server, complete, tmp_path, width):
    browser.open(server.url + "/", width)
    ask(browser, tmp_path, 2)
    messages = write_messages("what is in the picture ?", draw_picture(2))
    for place, stack in (("plain", "plain"), ("guarded", "both")):
        shown = browser.run(f"document.getElementById('{place}').textContent")
        assert shown.strip() == complete(messages, stack, 16).choices[0].message.content
    assert browser.run("document.querySelectorAll('#plain del').length") > 0
    assert browser.run("document.querySelectorAll('#guarded ins').length") > 0
    assert browser.run(WIDE) <= 0
    assert browser.run(NAMELESS) == []
    assert browser.run(CONTRASTS) == []
    look(browser, f"page-{width}")


def test_dark_colours_can_be_read_too(browser, server, tmp_path):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.open(server.url + "/", 400)
    ask(browser, tmp_path, 2)
    assert browser.run(CONTRASTS) == []
    look(browser, "page-dark")
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_an_error_is_shown(browser, server, tmp_path):
    browser.open(server.url + "/", 400)
    browser.wait("document.getElementById('stack').options.length > 0")
    browser.run("document.getElementById('question').value = 'what is <image> this ?'")
    browser.run("document.getElementById('ask').click()")
    assert "<image>" in browser.wait(
        "!document.getElementById('problem').hidden && document.getElementById('problem').textContent"
    )
    assert browser.run("!document.getElementById('ask').disabled && document.getElementById('answers').hidden")
    look(browser, "page-error")


def test_nothing_comes_from_elsewhere(browser, server):
    sent = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert sent
    assert [url for url in sent if not url.startswith((server.url, "data:", "blob:"))] == []
    blocked = [event["params"]["entry"]["text"] for event in browser.events if event["method"] == "Log.entryAdded"]
    assert [text for text in blocked if "Content Security Policy" in text] == []


def test_the_page_lets_nothing_else_run(server):
    response = httpx.get(server.url + "/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
