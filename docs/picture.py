"""Make the README's picture from a run of the demo: `python docs/picture.py`. Needs Chromium."""  # noqa: INP001 - a script

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from lvlm_guard import loading
from lvlm_guard.bench.reporting import page, results
from lvlm_guard.bench.reporting.examples import Example
from lvlm_guard.cli import demonstration

PICTURE = Path(__file__).resolve().parent / "images" / "demo.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT, MARGIN = 860, 1600, 14
SCENES = 60
SUITE = "counterfactual"

SHORT = """\
{% import "example.html.jinja" as example with context -%}
<!DOCTYPE html>
<meta charset="utf-8">
<style>{% include "report.css" %} main { padding: 0 1rem } .example { margin: .9rem 0 }</style>
<main>
{% for chosen in examples %}
{{ example.shown(chosen, section.pictures[chosen.item.image], section.remarks[chosen.item.id], replies, named) }}
{% endfor %}
</main>
"""


def html(scenes: int) -> str:
    """Return examples of the demo's page, one for each broken habit on which plain and guarded answers differ."""
    plan = demonstration.build_plan(None, scenes)
    with tempfile.TemporaryDirectory() as folder:
        record = demonstration.run(plan, loading.BUNDLED, Path(folder))
        scored = results.score(record, resamples=demonstration.RESAMPLES)
        section = page.build_section(scored, SUITE, page.build_source(record, scored, SUITE))
    return (
        page.environment()
        .from_string(SHORT)
        .render(section=section, examples=_one_per_habit(section), replies=page.REPLIES, named=page.NAMED)
    )


def _one_per_habit(section: page.Section) -> list[Example]:
    """The first example of each broken habit."""
    return list({example.item.extra["broken"]: example for example in reversed(section.chosen.examples)}.values())


def shoot(text: str, browser: str) -> Image.Image:
    """What a browser shows, in light colours, without the empty rest of the window."""
    with tempfile.TemporaryDirectory() as name:
        source, shot = Path(name) / "page.html", Path(name) / "shot.png"
        source.write_text(text, encoding="utf-8")
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1")
        size = f"--window-size={WIDTH},{HEIGHT}"
        command = [browser, *flags, size, f"--user-data-dir={name}/profile", f"--screenshot={shot}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - our own page
        with Image.open(shot) as whole:
            return cropped(whole.convert("RGB"))


def cropped(whole: Image.Image) -> Image.Image:
    """The picture without what is below its last content."""
    paper = Image.new("RGB", whole.size, whole.getpixel((0, 0)))
    content = ImageChops.difference(whole, paper).getbbox()
    bottom = whole.height if content is None else min(whole.height, content[3] + MARGIN)
    return whole.crop((0, 0, whole.width, bottom))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the README's picture from a run of the demo.")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    arguments = parser.parse_args()
    if arguments.browser is None:
        parser.exit(2, f"none of {', '.join(BROWSERS)} is installed. Name a browser: --browser PATH\n")
    loading.quieten()
    PICTURE.parent.mkdir(exist_ok=True)
    shoot(html(arguments.scenes), arguments.browser).quantize(256).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
