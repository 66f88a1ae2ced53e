"""`Guard.inputs` and `Guard.chat`: messages, pictures, prompts and options, and what is none of these."""

from __future__ import annotations

import base64
import functools
import io
import random
from pathlib import Path

import numpy as np
import torch
from fuzzing import Attempt, Surface
from PIL import Image
from toy_processor import toy_processor

from lvlm_guard import Guard, PictureSources
from lvlm_guard.testing import tiny
from lvlm_guard.testing.processing import TinyProcessor

CHATS = 0.2
WORDS = (
    *["a b"] * 8,
    "<image> a",
    "<image> <image>",
    "",
    "a\x00",
    "é" * 300,
    "<pad>",
    "{{ a }}",
    "x" * 20000,
    "\ud800",
)
ODD = (None, 0, -1, 10**400, float("nan"), True, b"a", {1}, 1j, object(), {}, [], (), Path(), range(3), [[]], {"a": 1})
ROLES = (*["user"] * 12, "system", "assistant", "", None, 3, "tool", ["user"])
TYPES = (
    *["image"] * 6,
    "image_url",
    "image_url",
    "input_image",
    "text",
    "input_text",
    "video",
    "imgae",
    None,
    3,
    ["image"],
    {},
)
KEYS = ("image", "url", "path", "base64", "image_url", "text", "source", "detail", 3)
DTYPES = (
    "uint8",
    "int8",
    "int32",
    "uint16",
    "uint64",
    "float16",
    "float32",
    "float64",
    "bool",
    "complex64",
    "object",
    "U3",
)
SHAPES = (
    (8, 8, 3),
    (3, 8, 8),
    (8, 8),
    (8, 8, 1),
    (8, 8, 2),
    (8, 8, 4),
    (8, 8, 5),
    (0, 8, 3),
    (1, 1, 3),
    (3, 3, 3),
    (8,),
    (),
)
MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBA", "LA", "RGBa")
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA")
URLS = (
    "http://127.0.0.1:1/a.png", "https://", "ftp://host/a", "file:///", "file://host/a", "data:", "data:image/png;base64,",
    "data:image/png;base64,@@", "data:text/plain,a", "s3://a/b", "~", "~nobody/a.png", ".", "/dev/null", "//", "http://[", "\x00",
)  # fmt: skip
OPTIONS = (
    ("padding", (False, "max_length", 3)), ("return_tensors", ("np", None, "pt", 3)), ("size", ({}, {"height": 0, "width": 3}, 3)),
    ("do_rescale", (False, None)), ("do_resize", (False,)), ("image_mean", (3, [1], "a")), ("nonsense", (1,)),
    ("padding_side", ("right", 3)), ("truncation", (True,)), ("max_length", (1, -1)), ("input_data_format", ("channels_last", "a")),
    ("images_kwargs", ({}, 3)),
)  # fmt: skip


@functools.cache
def guard_on(architecture: str, stack: tuple[str, ...]) -> Guard:
    processor = toy_processor() if architecture == "llava" else TinyProcessor(architecture)
    return Guard(tiny(architecture)[0], processor, list(stack), pictures=PictureSources(remote=True, timeout=0.5))


def draw_array(chance: random.Random) -> object:
    shape, dtype = chance.choice(SHAPES), chance.choice(DTYPES)
    low, high = chance.choice([(0, 255), (0, 1), (-1, 1), (0, 65535), (0, 0)])
    values = np.random.default_rng(chance.randrange(1000)).uniform(low, high, shape)
    with np.errstate(all="ignore"):
        array = np.asarray(values if chance.random() < 0.5 else values.round()).astype(dtype)
    if array.dtype.kind == "f" and array.size and chance.random() < 0.2:
        array.flat[0] = chance.choice([np.nan, np.inf, -np.inf])
    if isinstance(array, np.ndarray) and array.dtype.kind in "uif" and chance.random() < 0.3:
        tensor = torch.from_numpy(array)
        return chance.choice([tensor, tensor.to("meta"), tensor.bfloat16(), tensor.float().requires_grad_()])
    return array


def draw_pil(chance: random.Random) -> Image.Image:
    size = chance.choice([(8, 8), (30, 40), (1, 1), (1, 300), (0, 3), (300, 1), (2, 2)])
    picture = Image.new(chance.choice(MODES), size)
    if chance.random() < 0.1:
        picture.info["transparency"] = chance.choice([0, (1, 2, 3), b"\x00" * 3, "a", 999])
    if chance.random() < 0.1:
        picture.info["exif"] = chance.choice([b"", b"junk", "a", 3])
    if chance.random() < 0.1:
        picture.close()
    return picture


def draw_content(chance: random.Random) -> bytes:
    """Return the content of a picture's file, whole or broken."""
    stream = io.BytesIO()
    try:
        Image.effect_noise((20, 20), 50).convert(chance.choice(("RGB", "L", "P", "1"))).save(
            stream, chance.choice(FORMATS)
        )
    except (OSError, ValueError):
        return b"<html>"
    content = bytearray(stream.getvalue())
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(content)
    if kind == 1:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(chance.randrange(1, 30)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def draw_source(chance: random.Random, folder: Path) -> object:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.choice(URLS)
    content = draw_content(chance)
    if kind == 1:
        return "data:image/png;base64," + base64.b64encode(content).decode()
    if kind == 2:
        return base64.b64encode(content).decode()
    path = folder / f"{chance.randrange(10)}.png"
    path.write_bytes(content)
    return path if chance.random() < 0.5 else str(path)


def draw_picture(chance: random.Random, folder: Path) -> object:
    kind = chance.random()
    if kind < 0.5:
        return Image.new("RGB", (30, 30), (chance.randrange(256), 0, 0))
    if kind < 0.65:
        return draw_pil(chance)
    if kind < 0.8:
        return draw_array(chance)
    return draw_source(chance, folder) if kind < 0.95 else chance.choice(ODD)


def draw_images(chance: random.Random, folder: Path) -> object:
    if chance.random() < 0.5:
        return draw_picture(chance, folder)
    drawn = [draw_picture(chance, folder) for _ in range(chance.randrange(4))]
    return chance.choice([drawn, drawn, tuple(drawn), [drawn], iter(drawn), {"a": drawn}])


def draw_item(chance: random.Random, folder: Path) -> object:
    kind = chance.random()
    if kind < 0.45:
        return {"type": "text", "text": chance.choice(WORDS)}
    if kind < 0.8:
        return {"type": "image", "image": draw_picture(chance, folder)}
    if kind < 0.85:
        return draw_picture(chance, folder)
    item = {"type": chance.choice(TYPES)} if chance.random() < 0.8 else {}
    for key in chance.sample(KEYS, chance.randrange(3)):
        value = draw_picture(chance, folder)
        item[key] = chance.choice([value, {"url": value}, chance.choice(WORDS)])
    return item


def draw_message(chance: random.Random, folder: Path) -> object:
    if chance.random() < 0.05:
        return chance.choice((*ODD, *WORDS))
    content = [draw_item(chance, folder) for _ in range(chance.randrange(4))]
    message = {
        "role": chance.choice(ROLES),
        "content": chance.choice([content, content, chance.choice(WORDS), tuple(content)]),
    }
    if chance.random() < 0.1:
        message["content"] = chance.choice(ODD)
    if chance.random() < 0.05:
        del message[chance.choice(list(message))]
    return message


def draw_messages(chance: random.Random, folder: Path) -> object:
    if chance.random() < 0.05:
        return chance.choice((*ODD, *WORDS))
    messages = [draw_message(chance, folder) for _ in range(chance.randrange(1, 3))]
    return [messages, messages] if chance.random() < 0.15 else messages


def draw(chance: random.Random, folder: Path) -> Attempt:
    guard = guard_on(chance.choice(["llava", "llava", "llava", "qwen2_vl"]), ())
    arguments = {}
    if chance.random() < 0.5:
        arguments["images"] = draw_images(chance, folder)
    if chance.random() < 0.6:
        arguments["messages"] = draw_messages(chance, folder)
    if "messages" not in arguments or chance.random() < 0.03:
        images = arguments.get("images")
        fitting = "<image> " * (len(images) if isinstance(images, (list, tuple)) else 1) + "a"
        texts = chance.choice(
            [chance.choice(WORDS), [chance.choice(WORDS) for _ in range(chance.randrange(3))], fitting, fitting]
        )
        arguments["text"] = texts if chance.random() < 0.9 else chance.choice(ODD)
    if "text" not in arguments and chance.random() < CHATS:
        guard = guard_on(
            guard.processor.architecture if hasattr(guard.processor, "architecture") else "llava", ("vcd",)
        )
        settings = {"max_new_tokens": 1, "do_sample": False}
        return Attempt(
            describe("chat", arguments),
            lambda: guard.chat(**arguments, **settings),
            lambda: guard.model.generate(**guard.inputs(**arguments), **settings),
        )
    if chance.random() < 0.2:
        name, values = chance.choice(OPTIONS)
        arguments[name] = chance.choice(values)
    return Attempt(describe("inputs", arguments), lambda: guard.inputs(**arguments))


def describe(method: str, arguments: dict[str, object]) -> str:
    return f"guard.{method}(**{str(arguments)[:250]})"


SURFACE = Surface("inputs", draw, attempts=2000, slice=60)
