"""Every kind of picture gives the pixels that the model's own processor gives for it, or an error that says what to pass."""

import base64
import copy
import functools
import hashlib
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from toy_processor import toy_processor
from versions import skip

from lvlm_guard import Guard, GuardWarning, InputError, PictureSources
from lvlm_guard.request import picture_digests
from lvlm_guard.request.picture_files import opened_picture
from lvlm_guard.request.picture_loading import read_picture
from lvlm_guard.request.picture_sources import decode
from lvlm_guard.testing import tiny

LEVELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
PICTURE = Image.fromarray(LEVELS)
TEXT = "user : <image> a b"


def clear(mode):
    """Return a picture that is half transparent."""
    alpha = Image.fromarray(LEVELS[..., 0])
    picture = PICTURE.convert("RGBA")
    picture.putalpha(alpha)
    return picture if mode == "RGBA" else picture.convert(mode)


def palette():
    picture = PICTURE.convert("P")
    picture.info["transparency"] = 3
    return picture


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PICTURE, "JPEG", exif=exif)


def animated():
    return encoded(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", PICTURE.size)])


@functools.cache
def guard_on(**options):
    return Guard(tiny("llava")[0], toy_processor(), [], **options)


def pixels(value, **options):
    return guard_on().inputs(images=value, text=TEXT, **options)["pixel_values"]


def wanted(value, **options):
    return guard_on().processor(images=value, text=TEXT, return_tensors="pt", **options)["pixel_values"]


SAME = {
    "rgb": PICTURE,
    "grey": PICTURE.convert("L"),
    "one bit": PICTURE.convert("1"),
    "palette": PICTURE.convert("P"),
    "palette with transparency": palette(),
    "cmyk": PICTURE.convert("CMYK"),
    "ycbcr": PICTURE.convert("YCbCr"),
    "hsv": PICTURE.convert("HSV"),
    "rgba": clear("RGBA"),
    "la": clear("LA"),
    "premultiplied": clear("RGBA").convert("RGBa"),
    "int32 mode": Image.fromarray(LEVELS[..., 0].astype("int32")),
    "16-bit mode of 8-bit levels": Image.fromarray(LEVELS[..., 0].astype("uint16")),
    "second frame": Image.open(io.BytesIO(animated())),
    "array": LEVELS,
    "channels first": LEVELS.transpose(2, 0, 1),
    "fortran order": np.asfortranarray(LEVELS),
    "reversed view": LEVELS[::-1, ::-1],
    "tensor": torch.from_numpy(LEVELS),
    "tensor, channels first": torch.from_numpy(LEVELS).permute(2, 0, 1),
    "int32": LEVELS.astype("int32"),
    "int64 tensor": torch.from_numpy(LEVELS).long(),
    "uint16": LEVELS.astype("uint16"),
    "float of 0 to 255": LEVELS.astype("float32"),
    "half of 0 to 255": LEVELS.astype("float16"),
    "one channel": LEVELS[..., :1],
    "four channels": np.concatenate([LEVELS, LEVELS[..., :1]], axis=2),
    "a batch of arrays": LEVELS[None],
    "one pixel wide": Image.fromarray(LEVELS[:, :1]),
}
SAME["second frame"].seek(1)


OLDER = {"one channel": Image.fromarray(LEVELS[..., 0]), "four channels": Image.fromarray(SAME["four channels"])}
"""The same as pictures of Pillow: processors of older versions take no such arrays."""


@pytest.mark.parametrize("kind", SAME)
def test_a_picture_gives_the_processors_own_pixels(kind):
    try:
        expected = wanted(SAME[kind])
    except ValueError:
        expected = wanted(OLDER[kind])
    assert torch.equal(pixels(SAME[kind]), expected)


FILES = {
    "png": lambda: encoded(PICTURE),
    "upright jpeg": lambda: encoded(PICTURE, "JPEG"),
    **{f"jpeg turned {orientation}": functools.partial(turned, orientation) for orientation in (2, 3, 5, 6, 8)},
    "cmyk jpeg": lambda: encoded(PICTURE.convert("CMYK"), "JPEG"),
    "transparent png": lambda: encoded(clear("RGBA")),
    "transparent palette": lambda: encoded(palette()),
    "animation": animated,
    "pages": lambda: encoded(PICTURE, "TIFF", save_all=True, append_images=[Image.new("L", (3, 3))]),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_gives_the_processors_own_pixels_through_every_door(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = FILES[kind]()
    path = tmp_path / "a picture.bin"
    path.write_bytes(content)
    text = base64.b64encode(content).decode()
    uri = f"data:image/png;base64,{text}"
    expected = wanted(uri)
    doors = [path, str(path), "a picture.bin", "./a picture.bin", path.as_uri(), uri, text]
    for value in doors:
        assert torch.equal(pixels(value), expected), value
    items = [{"type": "image", "path": str(path)}, {"type": "image_url", "image_url": {"url": uri}}]
    for item in items:
        messages = [{"role": "user", "content": [item, {"type": "text", "text": "a"}]}]
        assert torch.equal(guard_on().inputs(messages=messages)["pixel_values"], expected)
    assert torch.equal(pixels(read_picture(path)), expected), "what benchmarks and commands read"


def test_a_path_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    PICTURE.save(tmp_path / "scene.png")
    assert torch.equal(pixels("~/scene.png"), wanted(PICTURE))


def test_a_grey_array_is_a_grey_picture():
    assert torch.equal(pixels(LEVELS[..., 0]), wanted(Image.fromarray(LEVELS[..., 0])))


def test_floats_of_0_to_1_pass_where_the_processor_does_not_rescale():
    shares = LEVELS.astype("float32") / 255
    assert torch.equal(pixels(shares, do_rescale=False), wanted(shares, do_rescale=False))
    with pytest.raises(InputError, match="do_rescale=False"):
        pixels(shares)


@pytest.mark.parametrize("group", ["images_kwargs", "common_kwargs"])
def test_options_count_in_the_groups_that_processors_take(group):
    shares = LEVELS.astype("float32") / 255
    options = {group: {"do_rescale": False}}
    try:
        wanted(shares, **copy.deepcopy(options))  # older processors take out of it what they use
    except TypeError:
        skip("a processor that takes no such group")
    assert torch.equal(pixels(shares, **options), wanted(shares, do_rescale=False))
    assert options == {group: {"do_rescale": False}}
    with pytest.raises(InputError, match="do_rescale=False"):
        pixels(shares, do_rescale=True, common_kwargs={"do_rescale": False})
    layout = {group: {"input_data_format": "channels_last"}}
    assert torch.equal(pixels(LEVELS[:3, :8], **layout), wanted(Image.fromarray(LEVELS[:3, :8])))
    with pytest.raises(InputError, match="tensors of torch"):
        pixels(PICTURE, **{group: {"return_tensors": "np"}})


def test_a_length_counts_in_its_group():
    padding = {"padding": "max_length", "max_length": 40}
    made = guard_on().processor(images=PICTURE, text=TEXT, text_kwargs=dict(padding), return_tensors="pt")
    if not isinstance(made["input_ids"], torch.Tensor):
        skip("processors that return lists where options of text are in their group")
    padding["return_tensors"] = "pt"
    assert guard_on().inputs(images=PICTURE, text=TEXT, text_kwargs=padding)["input_ids"].shape == (1, 40)


def test_options_of_text_count_in_their_groups():
    for group in ("text_kwargs", "common_kwargs"):
        with pytest.raises(InputError, match="padded on the left"):
            pixels(PICTURE, **{group: {"padding_side": "right"}})
    floats = LEVELS.astype("float32") / 255
    with pytest.raises(InputError, match="do_rescale=False"):
        pixels(floats, text_kwargs={"do_rescale": False})


def test_channels_that_may_be_first_or_last_need_a_word():
    levels = LEVELS[:3, :8]
    with pytest.raises(InputError, match="input_data_format"):
        pixels(levels)
    assert torch.equal(pixels(levels, input_data_format="channels_last"), wanted(Image.fromarray(levels)))


def test_a_turned_pil_picture_is_what_the_processor_sees_with_a_warning():
    with Image.open(io.BytesIO(turned())) as picture, pytest.warns(GuardWarning, match="exif_transpose"):
        assert torch.equal(pixels(picture), wanted(picture))


def closed():
    picture = Image.open(io.BytesIO(encoded(PICTURE)))
    picture.close()
    return picture


def bomb():
    header = (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    stream = io.BytesIO()
    stream.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(stream, b"IHDR", header)
    PngImagePlugin.putchunk(stream, b"IDAT", b"")
    return stream.getvalue()


deep = Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))
REFUSED = {
    "16-bit": (lambda: deep, "divide by 257"),
    "16-bit array": (lambda: np.full((8, 8, 3), 40000, dtype=np.uint16), "divide by 257"),
    "mode F": (lambda: Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "once more"),
    "negative": (lambda: np.full((8, 8, 3), -1), "0 to 255"),
    "centred": (lambda: LEVELS / 127.5 - 1, "0 to 255"),
    "fractions": (lambda: LEVELS * 0.99, "fractions"),
    "nan": (lambda: np.full((8, 8, 3), np.nan), "0 to 255"),
    "bool": (lambda: LEVELS > 127, "multiply it by 255"),
    "complex": (lambda: LEVELS.astype(complex), "complex128"),
    "objects": (lambda: LEVELS.astype(object), "object"),
    "texts": (lambda: np.array([["a"]]), "integers or floats"),
    "two channels": (lambda: LEVELS[..., :2], "no axis of 1, 3 or 4"),
    "five channels": (lambda: np.zeros((8, 8, 5), dtype=np.uint8), "no axis of 1, 3 or 4"),
    "no rows": (lambda: LEVELS[:0], "none of them empty"),
    "one axis": (lambda: LEVELS[0, 0], "height, width"),
    "meta tensor": (lambda: torch.empty(8, 8, 3, device="meta"), "tensor that cannot be read"),
    "empty": (lambda: Image.new("RGB", (0, 5)), "empty"),
    "thread": (lambda: Image.new("RGB", (1, 5000)), "crop it"),
    "closed": (closed, "Open its file anew"),
    "bytes": (lambda: b"abc", "BytesIO"),
    "open file": (lambda: io.BytesIO(encoded(PICTURE)), "PIL.Image.open"),
    "dict": (lambda: {"url": "a.png"}, "a dict"),
    "generator": (lambda: (each for each in [PICTURE]), "generator"),
    "nothing": (lambda: [None], "NoneType"),
    "nested": (lambda: [[[PICTURE]]], "flat list"),
    "gone": (lambda: "no/such.png", "no such file; paths start at"),
    "folder": (lambda: "/", "folder"),
    "nul": (lambda: "a\x00b", "no such file"),
    "text data": (lambda: "data:text/html;base64,PGI+", "data:image/png;base64"),
    "plain data": (lambda: "data:image/png,abc", "data:image/png;base64"),
    "broken base64": (lambda: "data:image/png;base64,@@@", "not base64"),
    "base64 of something": (lambda: base64.b64encode(b"x" * 500).decode(), "no format that PIL reads"),
    "huge uri": (lambda: "data:image/png;base64," + "A" * 2_400_000, "no format that PIL reads"),
    "ftp": (lambda: "ftp://host/a.png", "begins with http"),
    "another machine": (lambda: "file://host/a.png", "another machine"),
    "url": (lambda: "https://host/a.png", "PictureSources\\(remote=True\\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_cannot_be_read_says_what_to_do(kind):
    value, words = REFUSED[kind]
    with pytest.raises(InputError, match=words) as caught:
        pixels(value())
    assert len(str(caught.value)) < 600


BROKEN = {
    "truncated": (lambda: encoded(PICTURE)[:2000], "broken|truncated"),
    "truncated jpeg": (lambda: encoded(PICTURE, "JPEG")[:700], "truncated"),
    "empty": (lambda: b"", "it is empty"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "page": (lambda: b"\n<!DOCTYPE html><html>", "HTML page"),
    "drawing": (lambda: b"<svg xmlns='...'>", "SVG"),
    "phone": (lambda: b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
    "16-bit tiff": (lambda: encoded(deep, "TIFF"), "divide by 257"),
    "bomb": (bomb, "60000 x 60000 pixels.*at most 179 million.*MAX_IMAGE_PIXELS"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_picture_says_what_it_is(kind, tmp_path):
    content, words = BROKEN[kind]
    path = tmp_path / "scene.png"
    path.write_bytes(content())
    with pytest.raises(InputError, match=words) as caught:
        pixels(path)
    assert "scene.png" in str(caught.value)


def test_a_png_of_16_bits_is_rounded_to_8():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(levels / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(levels)), "it"))[..., 0], expected)


def test_the_limit_of_pixels_follows_pils(monkeypatch):
    content = encoded(PICTURE)
    for most, passes in ((1000, True), (999, False), (None, True)):  # 40 x 50 pixels
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        if passes:
            assert decode(content, "it").size == PICTURE.size
        else:
            with pytest.raises(InputError, match="50 x 40 pixels"):
                decode(content, "it")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO"])
def test_a_file_is_known_by_what_it_holds_as_pil_knows_it(kind):
    content = encoded(PICTURE, kind)
    with Image.open(io.BytesIO(content)) as wanted_picture, opened_picture(content) as picture:
        assert (type(picture), picture.size) == (type(wanted_picture), wanted_picture.size)
    with pytest.raises(OSError, match="no format"), opened_picture(content, ["JPEG2000"]):
        pass


def test_what_is_only_shown_is_decoded_in_part():
    large = PICTURE.resize((1600, 1280))
    assert decode(encoded(large, "JPEG"), "it").size == (1600, 1280)
    assert decode(encoded(large, "JPEG"), "it", 400).size == (800, 640)
    assert decode(encoded(large), "it", 400).size == (1600, 1280)


def test_a_digest_in_bands_is_that_of_the_whole(monkeypatch):
    monkeypatch.setattr(picture_digests, "BAND", 120)
    expected = hashlib.sha256(b"label" + PICTURE.tobytes()).hexdigest()
    assert picture_digests.digest_levels(PICTURE, "label") == expected


def test_local_paths_can_be_turned_off(tmp_path):
    guard = guard_on(pictures=PictureSources(local=False))
    path = tmp_path / "scene.png"
    PICTURE.save(path)
    for value in (path, str(path), path.as_uri(), "gone.png", "~/gone.png"):
        with pytest.raises(InputError, match=r"Local paths are not read here.*data URI"):
            guard.inputs(images=value, text=TEXT)
    uri = "data:image/png;base64," + base64.b64encode(encoded(PICTURE)).decode()
    assert torch.equal(guard.inputs(images=uri, text=TEXT)["pixel_values"], wanted(PICTURE))


@pytest.fixture
def server(tmp_path):
    PICTURE.save(tmp_path / "scene.png")
    (tmp_path / "page.png").write_bytes(b"<html>")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_remote_pictures_are_fetched_where_allowed(server, monkeypatch):
    guard = guard_on(pictures=PictureSources(remote=True, timeout=5.0))
    assert torch.equal(guard.inputs(images=f"{server}/scene.png", text=TEXT)["pixel_values"], wanted(PICTURE))
    for name, words in (("gone.png", "404"), ("page.png", "HTML page")):
        with pytest.raises(InputError, match=words):
            guard.inputs(images=f"{server}/{name}", text=TEXT)
    monkeypatch.setattr("lvlm_guard.request.picture_sources.LARGEST_DOWNLOAD", 10)
    with pytest.raises(InputError, match="download it yourself"):
        guard.inputs(images=f"{server}/scene.png", text=TEXT)
    with pytest.raises(InputError, match="cannot be fetched"):
        guard.inputs(images="http://127.0.0.1:1/scene.png", text=TEXT)


@pytest.mark.parametrize("options", [{"local": 1}, {"remote": "yes"}, {"timeout": 0}, {"timeout": True}])
def test_sources_of_another_type_are_refused(options):
    with pytest.raises(InputError, match=f"PictureSources.{min(options)}"):
        PictureSources(**options)
    with pytest.raises(InputError, match="PictureSources"):
        guard_on(pictures=True)
