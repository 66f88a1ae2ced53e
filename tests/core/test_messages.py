"""Chat messages as transformers and OpenAI write them, and what is none of these."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from toy_processor import toy_processor

from lvlm_guard import Guard, InputError, PictureSources
from lvlm_guard.testing import tiny
from lvlm_guard.testing.processing import TinyProcessor

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 30, 3), dtype=np.uint8)) for seed in range(3)
]
PICTURE = PICTURES[0]


def uri(picture=PICTURE):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="module")
def guard():
    return Guard(tiny("llava")[0], toy_processor(), [])


@pytest.fixture(scope="module")
def expected(guard):
    return guard.processor(images=PICTURE, text="user : <image> a b assistant :", return_tensors="pt")


def user(*content):
    return [{"role": "user", "content": list(content)}]


def text(words="a b"):
    return {"type": "text", "text": words}


ITEMS = {
    "image": lambda path: {"type": "image", "image": PICTURE},
    "image, array": lambda path: {"type": "image", "image": np.asarray(PICTURE)},
    "image, path": lambda path: {"type": "image", "image": path},
    "image, data": lambda path: {"type": "image", "image": uri()},
    "path": lambda path: {"type": "image", "path": path},
    "url, path": lambda path: {"type": "image", "url": path},
    "url, data": lambda path: {"type": "image", "url": uri()},
    "base64": lambda path: {"type": "image", "base64": uri().partition(",")[2]},
    "base64, data": lambda path: {"type": "image", "base64": uri()},
    "image_url": lambda path: {"type": "image_url", "image_url": {"url": uri(), "detail": "high"}},
    "image_url, text": lambda path: {"type": "image_url", "image_url": uri()},
    "input_image": lambda path: {"type": "input_image", "image_url": uri()},
    "no type": lambda path: {"image": PICTURE},
    "null fields": lambda path: {"type": "image", "image": PICTURE, "text": None, "url": None},
    "bare": lambda path: PICTURE,
    "bare array": lambda path: np.asarray(PICTURE),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_an_image_item_brings_its_picture(kind, guard, expected, tmp_path):
    path = tmp_path / "scene.png"
    PICTURE.save(path)
    batch = guard.inputs(messages=user(ITEMS[kind](str(path)), text()))
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text", None])
def test_a_text_item_brings_its_text(kind, guard, expected):
    words = {"text": "a b"} if kind is None else {"type": kind, "text": "a b"}
    batch = guard.inputs(messages=user({"type": "image"}, words), images=PICTURE)
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def pixels(*pictures):
    return toy_processor()(images=list(pictures), text=["<image>"] * len(pictures), return_tensors="pt")["pixel_values"]


def test_images_stand_in_for_items_without_a_picture_in_their_order(guard):
    messages = user({"type": "image"}, text("a"), PICTURES[1], {"type": "image", "image": None})
    batch = guard.inputs(messages=messages, images=[PICTURES[0], PICTURES[2]])
    assert torch.equal(batch["pixel_values"], pixels(*PICTURES))


def test_images_without_an_item_come_before_the_users_text(guard):
    talk = [{"role": "system", "content": "c"}, *user(text("a"))]
    alone = guard.inputs(messages=talk, images=PICTURES[:2])
    wanted = guard.inputs(text="system : c user : <image> <image> a assistant :", images=PICTURES[:2])
    assert torch.equal(alone["input_ids"], wanted["input_ids"])
    many = guard.inputs(messages=[talk, user(PICTURES[2], text("b")), talk], images=PICTURES[:2])
    assert torch.equal(many["pixel_values"], pixels(PICTURES[0], PICTURES[2], PICTURES[1]))


def test_messages_are_left_as_they_are(guard):
    messages = user(PICTURE, text())
    guard.inputs(messages=messages)
    assert messages == user(PICTURE, text())


def test_a_start_token_that_the_template_writes_is_not_added_again(guard):
    processor = toy_processor()
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "<bos>"
    processor.chat_template = "<bos> " + processor.chat_template
    options = []
    tokenizer_call = type(processor).__call__

    class Recorder(type(processor)):
        def __call__(self, **settings):
            options.append(settings.get("add_special_tokens"))
            return tokenizer_call(self, **settings)

    processor.__class__ = Recorder
    Guard(guard.model, processor, []).inputs(messages=user(PICTURE, text()))
    Guard(guard.model, processor, []).inputs(images=PICTURE, text="<image> a")
    assert options == [False, None]


class Hostile:
    def __repr__(self):
        raise ValueError("no repr")


LONG = "data:image/png;base64," + "A" * 2_400_000
REFUSED = {
    "a text": ("hello", "messages is a list"),
    "a dict": ({"role": "user", "content": "a"}, "messages is a list"),
    "a generator": ((each for each in user(text())), "messages is a list"),
    "a hostile object": (Hostile(), "messages is a list"),
    "empty": ([], "messages is empty"),
    "an empty conversation": ([user(text()), []], r"messages\[1\] is empty"),
    "mixed": ([user(text()), user(text())[0]], r"messages\[1\] is no list"),
    "no role": ([{"content": "a"}], r"messages\[0\]: a message is a dict with a role and content"),
    "a number": ([3], "a role and content"),
    "odd role": ([{"role": 3, "content": "a"}], "a role is a text"),
    "no content": ([{"role": "user", "content": None}], "content is a text or a list"),
    "a number as content": ([{"role": "user", "content": 3}], "content is a text or a list"),
    "bytes as content": ([{"role": "user", "content": b"a"}], "content is a text or a list"),
    "a dict as content": ([{"role": "user", "content": text()}], "content is a text or a list"),
    "a bare text": (user("a"), r"messages\[0\], item 0: an item is a dict"),
    "a nested list": (user([text()]), "an item is a dict"),
    "bytes": (user(b"a"), "an item is a dict"),
    "video": (user({"type": "video", "video": "a.mp4"}), "texts and pictures"),
    "misspelt": (user({"type": "imgae", "image": PICTURE}), "Did you mean 'image'"),
    "odd type": (user({"type": ["image"]}), "texts and pictures"),
    "a number as text": (user(text(3)), "the text of an item is a text"),
    "no text": (user({"type": "text"}), "the text of an item is a text"),
    "picture in text": (user({**text(), "image": PICTURE}), "would not be seen"),
    "text in picture": (user({"type": "image", "image": PICTURE, "text": "a"}), "would not be read"),
    "two pictures": (user({"type": "image", "image": PICTURE, "url": "a.png"}), "holds one picture"),
    "file id": (user({"type": "input_image", "file_id": "f"}), "holds it under"),
    "source": (user({"type": "image", "source": {"data": "a"}}), "holds it under"),
    "no url": (user({"type": "image_url", "image_url": {}}), "a dict"),
    "a number as url": (user({"type": "image_url", "image_url": {"url": 3}}), "got int"),
    "remote": (user({"type": "image_url", "image_url": {"url": "https://host/a.png"}}), "Remote pictures are off"),
    "long data": (user({"type": "image_url", "image_url": {"url": LONG}}), "no format that PIL reads"),
    "long junk": (user({"type": "image", "image": "x" * 2_400_000}), "cannot be"),
    "no picture": (user({"type": "image"}, text()), "without a picture: 1 of 1; pictures in images=: 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_messages_say_where_and_what_to_write(kind, guard):
    messages, words = REFUSED[kind]
    with pytest.raises(InputError, match=words) as caught:
        guard.inputs(messages=messages)
    assert len(str(caught.value)) < 600


def test_an_error_says_which_of_several_pictures_it_is_about(guard):
    with pytest.raises(InputError, match=r"Picture 2 of 2: The picture 'gone.png'"):
        guard.inputs(images=[PICTURE, "gone.png"], text="<image> <image>")


def test_pictures_left_over_are_refused(guard):
    for messages in (user(PICTURE, text()), [user(text()), user(text()), user(text())]):
        with pytest.raises(InputError, match="pictures in images=: 2"):
            guard.inputs(messages=messages, images=PICTURES[:2])


@pytest.mark.parametrize(
    ("prompt", "images", "words"),
    [
        ("a b", PICTURE, "total 0 <image> tokens|no place for them in the prompt"),
        ("<image> a", None, r"\(<image>\): 1; pictures: 0"),
        ("<image> <image> a", PICTURE, r": 2; pictures: 1"),
        (["<image> a", "b"], PICTURES[:2], ": 1; pictures: 2"),
        ("", None, "empty"),
        ([], None, "a prompt or a list of prompts"),
        (3, None, "a prompt or a list of prompts"),
        (["a", None], None, "a prompt or a list of prompts"),
    ],
)
def test_prompts_and_pictures_that_do_not_fit_are_refused(prompt, images, words, guard):
    with pytest.raises(InputError, match=words):
        guard.inputs(images=images, text=prompt)


def test_a_picture_that_no_token_stands_for_is_refused_where_the_processor_lets_it_pass():
    with pytest.raises(InputError, match="no place for them in the prompt"):
        Guard(tiny("llava")[0], TinyProcessor("llava"), []).inputs(images=PICTURE, text="w30")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"return_tensors": "np"}, "return_tensors='np'"),
        ({"padding_side": "right"}, "padded on the left"),
        ({"padding": False}, "cannot make inputs"),
        ({"size": {"height": -1, "width": 3}}, "cannot make inputs"),
    ],
)
def test_options_that_do_not_work_are_refused(options, words, guard):
    with pytest.raises(InputError, match=words):
        guard.inputs(text=["<image> a", "<image> a b"], images=PICTURES[:2], **options)


def test_a_template_that_refuses_is_named(guard):
    processor = toy_processor()
    processor.chat_template = "{{ raise_exception('system comes first') }}"
    with pytest.raises(InputError, match=r"chat template of LlavaProcessor.*system comes first"):
        Guard(guard.model, processor, []).inputs(messages=user(text()))
    processor.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        Guard(guard.model, processor, []).inputs(messages=user(text()))


def test_paths_in_messages_follow_the_guards_sources(guard, tmp_path):
    PICTURE.save(tmp_path / "scene.png")
    strict = Guard(guard.model, guard.processor, [], pictures=PictureSources(local=False))
    item = {"type": "image_url", "image_url": {"url": str(tmp_path / "scene.png")}}
    with pytest.raises(InputError, match="Local paths are not read here"):
        strict.chat(user(item, text()), max_new_tokens=1)
    assert isinstance(guard.chat(user(item, text()), max_new_tokens=1, do_sample=False), str)
