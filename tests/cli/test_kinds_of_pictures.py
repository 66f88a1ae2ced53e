"""Every kind of picture file through the commands: seen as it is meant, or refused with what to do, and never with PIL's own words."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from lvlm_guard import loading
from lvlm_guard.cli import app
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.world.scenes import scene

PROMPT = "describe this image ."
TOKENS = 12
SCENE = scene("counterfactual", 3).picture
ORIENTATION = 0x0112
QUARTER = 6
"""The EXIF value of a picture that has to be turned by 90 degrees clockwise to be upright."""


def read(path, *modes):
    """Return what PIL reads, converted from mode to mode."""
    with Image.open(path) as opened:
        picture = opened.copy()
    for mode in modes:
        picture = picture.convert(mode)
    return picture


def animated(path):
    SCENE.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", SCENE.size, "navy")], duration=40)
    return read(path, "RGB")


def deep(path):
    levels = np.asarray(SCENE.convert("L"))
    Image.fromarray((levels * np.uint32(257) + 100).clip(max=65535).astype(np.uint16)).save(path, "PNG")
    return Image.fromarray(levels).convert("RGB")


def for_print(path):
    SCENE.convert("CMYK").save(path, "JPEG", quality=95)
    return read(path, "RGB")


def see_through(path):
    SCENE.quantize(64).save(path, "PNG", transparency=bytes(range(64)))
    return read(path, "RGBA", "RGB")


def turned(path):
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER
    SCENE.crop((0, 0, 64, 48)).save(path, "JPEG", quality=95, exif=exif)
    return read(path, "RGB").transpose(Image.Transpose.ROTATE_270)


def single(path):
    Image.new("RGB", (1, 1), "red").save(path, "PNG")
    return Image.new("RGB", (1, 1), "red")


SEEN = {
    "animated GIF": animated, "16-bit PNG": deep, "CMYK JPEG": for_print, "palette with transparency": see_through,
    "turned by EXIF": turned, "one pixel": single,
}  # fmt: skip


def truncated(path):
    path.write_bytes(encode(SCENE)[:400])


def narrow(path):
    Image.new("RGB", (10000, 2), "red").save(path, "PNG")


def huge(path):
    Image.new("1", (20000, 10000)).save(path, "PNG")


REFUSED = {
    "truncated": (truncated, "broken|truncated"),
    "10000 x 2 pixels": (narrow, "one side may be 200 times the other at most: crop it"),
    "beyond the limit": (huge, "20000 x 10000 pixels, 200 million; at most 179 million are read. Make it smaller"),
}


def encode(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def bundled():
    return loading.load("testbed", None, "auto")


@pytest.fixture
def run(bundled, monkeypatch):
    """Run a command as a user would, with the bundled model loaded once; a warning is an error."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: bundled)

    def invoke(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def generate(run, path):
    shared = ("--model", "testbed", "--image", path, "--prompt", PROMPT, "--max-new-tokens", TOKENS)
    return run("generate", *shared, "--stack", "plain")


def diagnose(run, path, out):
    shared = ("--model", "testbed", "--image", path, "--prompt", PROMPT, "--max-new-tokens", TOKENS)
    return run("diagnose", "answer", *shared, "--cells", 1, "--out", out)


def shown_picture(page):
    """Return the first picture of a page, on which its maps lie."""
    content = re.search(r'<img[^>]*src="data:image/png;base64,([^"]+)"', page)[1]
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


@pytest.mark.parametrize("kind", SEEN)
def test_a_file_is_seen_as_it_is_meant(kind, run, tmp_path):
    meant = SEEN[kind](tmp_path / "picture")
    (tmp_path / "plain.png").write_bytes(encode(meant))
    answers = [generate(run, tmp_path / name) for name in ("picture", "plain.png")]
    assert all(each.exit_code == 0 for each in answers), answers[0].output
    assert answers[0].output == answers[1].output != ""
    done = diagnose(run, tmp_path / "picture", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "report" / "answer.json").read_text())["answer"] == answers[0].output.strip()
    shown = shown_picture((tmp_path / "report" / "answer.html").read_text())
    assert np.array_equal(np.asarray(shown), np.asarray(meant))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_seen_says_what_to_do(kind, run, tmp_path):
    make, words = REFUSED[kind]
    make(tmp_path / "picture")
    for done in (generate(run, tmp_path / "picture"), diagnose(run, tmp_path / "picture", tmp_path / "report")):
        assert isinstance(done.exception, InputError), done.output
        assert re.search(words, str(done.exception)), done.exception
        assert "--image" in str(done.exception)
    assert not (tmp_path / "report").exists()


def test_a_picture_that_pil_warns_of_is_read_without_a_word(run, tmp_path, monkeypatch):
    SCENE.save(tmp_path / "picture", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "picture").close()
    assert generate(run, tmp_path / "picture").exit_code == 0


def test_a_turned_picture_lies_otherwise(tmp_path):
    """What the test of kinds can see: the upright picture is another one than the file's rows."""
    meant = turned(tmp_path / "picture")
    raw = read(tmp_path / "picture")
    assert meant.size == (48, 64) != raw.size
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(raw)), np.asarray(meant))
