"""What a browser is asked about a page: whether anything sticks out, is too pale, or cannot be reached by keyboard."""

from __future__ import annotations

import os
from pathlib import Path

from browser import Browser

PICTURES = os.environ.get("PAGE_PICTURES")
"""A folder for pictures of the pages, to be looked at."""
WIDTHS = (400, 1280)
WIDE = "document.documentElement.scrollWidth"
"""Not beside `window.innerWidth`: on a phone that grows with what sticks out."""
STICKS_OUT = """(width) => [...document.querySelectorAll('main *')].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && box.right > width + 1 && !node.closest('.wide') && !node.closest('.hidden-text');
}).map((node) => node.outerHTML.slice(0, 80))"""
PALE = """(() => {
    const read = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (levels) => { const [r, g, b] = levels.map((value) => value / 255).map(
        (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = (node) => {
        if (!node) return [255, 255, 255];
        const [r, g, b, alpha = 1] = read(getComputedStyle(node).backgroundColor);
        if (alpha === 1) return [r, g, b];
        const below = ground(node.parentElement);
        return [r, g, b].map((value, at) => alpha * value + (1 - alpha) * below[at]); };
    const names = 'h1, h2, h3, h4, p, li, dt, dd, th, td, label, span, b, a, summary, figcaption';
    return [...document.querySelectorAll(names)]
        .filter((node) => node.offsetParent && !node.closest('.hidden-text') && node.textContent.trim())
        .map((node) => { const [a, b] = [light(read(getComputedStyle(node).color).slice(0, 3)), light(ground(node))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)]; })
        .filter(([ratio]) => ratio < 4.5);
})()"""
FOCUSED = """(() => {
    const node = document.activeElement;
    if (!node || node === document.body) return null;
    const shown = node.matches('input') ? document.querySelector(`label[for=${node.id}]`) : node;
    const style = getComputedStyle(shown);
    return [node.id || node.getAttribute('aria-label') || node.textContent.trim(),
            style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1,
            shown.getBoundingClientRect().top + window.scrollY];
})()"""


def open_page(browser: Browser, path: Path, width: int, scheme: str = "light") -> None:
    """Open a page as a file, in a window of this width, light or dark."""
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(path.as_uri(), width=width)
    if PICTURES:
        browser.take_picture(Path(PICTURES) / f"{path.stem}-{scheme}-{width}.png")


def press(browser: Browser, key: str, code: int) -> None:
    """Press a key."""
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
