"""Without the image, nothing is left of what was written for it: fences, row breaks, tile marks and labels, in any of the families."""

from types import SimpleNamespace

import pytest
import torch

from lvlm_guard import Branch, Insert, Replace, StrategyRefused
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request

IMG, OPEN, CLOSE, BREAK, FAKE, GLOBAL, ROW, TILE, NEWLINE, LABEL, LABEL_END, VIDEO = range(100, 112)
TEXT = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
WORDS = {
    "<img>": IMG, "<open>": OPEN, "<close>": CLOSE, "<break>": BREAK, "<fake>": FAKE, "<global>": GLOBAL, "<row>": ROW,
    "<tile>": TILE, "\n": NEWLINE, "<label>": LABEL, "</label>": LABEL_END, "<video>": VIDEO, "<s>": 1, "</s>": 2,
}  # fmt: skip


class Tokenizer:
    """Added tokens as in `WORDS`; any other id is a word of text."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 0, 3

    def __init__(self, **names):
        self.added_tokens_decoder = {token: word for word, token in WORDS.items() if word != "\n"}
        vars(self).update(names)

    def convert_tokens_to_ids(self, words):
        return WORDS.get(words, 3) if isinstance(words, str) else [WORDS.get(word, 3) for word in words]

    def convert_ids_to_tokens(self, token):
        return next((word for word, known in WORDS.items() if known == token), f"w{token}")

    def decode(self, ids):
        return " ".join(self.convert_ids_to_tokens(token) for token in ids)

    def __call__(self, text, **_):
        return {"input_ids": [WORDS[word] for word in text.split(" ")]}


def processor(tokenizer=None, **names):
    return SimpleNamespace(tokenizer=tokenizer or Tokenizer(), **names)


def config(**names):
    vision = SimpleNamespace()
    return SimpleNamespace(
        image_token_id=IMG, vision_config=vision, is_encoder_decoder=False, get_text_config=lambda **_: TEXT, **names
    )


def request(ids, settings, maker=None, images=1, **more):
    ids = torch.tensor([ids])
    pixels = {"pixel_values": torch.zeros(images, 3, 2, 2)} if images else {}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels, **more}
    return Request(inputs, {}, settings, maker)


def removed(*arguments, **more):
    inputs = build_branch_inputs(request(*arguments, **more), Branch("gone", image="removed"), None)
    assert set(inputs) == {"input_ids", "attention_mask"}
    return inputs["input_ids"][0].tolist()


# Each family: what its processor writes for an image, where the names of it stand, and how many entries its pixels have.
FAMILIES = {
    "start and end in the config": (
        [OPEN, IMG, IMG, CLOSE], config(vision_start_token_id=OPEN, vision_end_token_id=CLOSE), None, 1,
    ),
    "start and end as boi and eoi": (
        [OPEN, IMG, IMG, CLOSE], config(boi_token_index=OPEN, eoi_token_index=CLOSE), None, 1,
    ),
    "start and end in a config inside the config": (
        [OPEN, IMG, IMG, CLOSE], config(encoder=SimpleNamespace(boi_token_index=OPEN, eoi_token_index=CLOSE, to_dict=dict)), None, 1,
    ),
    "ids without the word token": (
        [OPEN, IMG, BREAK, IMG, CLOSE], config(im_start_id=OPEN, im_end_id=CLOSE, im_newline_id=BREAK), None, 1,
    ),
    "indicators in one list of the config": (
        [OPEN, IMG, TILE, IMG, ROW, IMG, CLOSE], config(visual_indicator_token_ids=[OPEN, CLOSE, TILE, ROW]), None, 5,
    ),
    "a low-resolution image before the other": (
        [GLOBAL, IMG, BREAK, CLOSE, OPEN, IMG, BREAK, IMG, BREAK, CLOSE],
        config(image_start_token_id=OPEN, low_res_image_start_token_id=GLOBAL, image_end_token_id=CLOSE, image_col_id=BREAK),
        None, 1,
    ),
    "row breaks that only the processor names": (
        [IMG, IMG, BREAK, IMG, IMG, CLOSE], config(),
        processor(image_break_token_id=BREAK, image_end_token_id=CLOSE), 1,
    ),
    "row breaks that only the processor names, as words": (
        [IMG, IMG, BREAK, IMG, IMG, CLOSE], config(),
        processor(image_break_token="<break>", image_end_token="<close>"), 1,
    ),
    "rows without a processor": ([IMG, IMG, BREAK, IMG, IMG, BREAK, IMG, IMG, BREAK], config(), None, 1),
    "start and end that the tokenizer names": (
        [OPEN, IMG, IMG, CLOSE], config(), processor(Tokenizer(start_image_token="<open>", end_image_token="<close>")), 3,
    ),
    "start and end as constants of the class": (
        [OPEN, IMG, IMG, CLOSE], config(),
        type("Constants", (), {"VISION_START_TOKEN": "<open>", "VISION_END_TOKEN": "<close>", "tokenizer": Tokenizer()})(), 1,
    ),
    "all ids of an image in a list of the processor": (
        [OPEN, IMG, BREAK, IMG, BREAK, CLOSE], config(), processor(image_token_ids=[IMG, OPEN, CLOSE, BREAK]), 2,
    ),
    "tiles by row and column": (
        [FAKE, ROW, IMG, IMG, FAKE, TILE, IMG, IMG, NEWLINE, NEWLINE, FAKE, GLOBAL, IMG, IMG, FAKE], config(),
        processor(fake_image_token="<fake>", global_image_tag="<global>"), 3,
    ),
    "tile separators": (
        [OPEN, IMG, TILE, IMG, ROW, FAKE, IMG, CLOSE], config(boi_token_index=OPEN, eoi_token_index=CLOSE),
        processor(tile_x_separator_token="<tile>", tile_y_separator_token="<row>", fake_image_token="<fake>"), 3,
    ),
    "tile separators between start and end, without a processor": (
        [OPEN, IMG, TILE, IMG, ROW, FAKE, IMG, CLOSE], config(boi_token_index=OPEN, eoi_token_index=CLOSE), None, 3,
    ),
    "the size of the image as text": (
        [OPEN, 40, 41, 42, FAKE, IMG, IMG, GLOBAL, CLOSE], config(),
        processor(image_start_token="<open>", image_end_token="<close>", fake_token_around_image="<fake>"), 1,
    ),
    "the number of the image as text": (
        [LABEL, 40, LABEL_END, OPEN, IMG, IMG, CLOSE], config(),
        processor(
            image_start_token="<open>", image_end_token="<close>", image_id_start_token="<label>", image_id_end_token="</label>"
        ), 1,
    ),
    "slices behind the image": (
        [OPEN, IMG, IMG, CLOSE, FAKE, IMG, GLOBAL, NEWLINE, FAKE, IMG, GLOBAL], config(),
        processor(image_start_token="<open>", image_end_token="<close>", slice_start_token="<fake>", slice_end_token="<global>"),
        1,
    ),
    "white space that belongs to the image": (
        [NEWLINE, OPEN, IMG, IMG, CLOSE, NEWLINE], config(boi_token_index=OPEN, eoi_token_index=CLOSE),
        processor(full_image_sequence="\n <open> <img> <img> <close> \n"), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_of_an_image_and_all_of_the_text(family):
    image, settings, maker, entries = FAMILIES[family]
    assert removed([1, 8, *image, 9, 10], settings, maker, entries) == [1, 8, 9, 10]
    assert removed([1, *image, 9], settings, maker, entries) == [1, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_in_several_pieces_is_replaced_once_and_tokens_keep_clear_of_it(family):
    image, settings, maker, entries = FAMILIES[family]
    asked = request([1, 8, *image, 9], settings, maker, entries)
    replaced = build_branch_inputs(asked, Branch("x", tokens=(Replace((7,)),)), None)
    assert replaced["input_ids"][0].tolist() == [1, 8, 7, 9]
    longer = build_branch_inputs(
        asked, Branch("x", tokens=(Insert((5,), "before_image"), Insert((6,), "after_image"))), None
    )
    assert longer["input_ids"][0].tolist() == [1, 8, 5, *image, 6, 9]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "rows without a processor"])
def test_text_between_two_images_stays(family):
    image, settings, maker, entries = FAMILIES[family]
    assert removed([1, *image, 40, 41, *image, 9], settings, maker, 2 * entries) == [1, 40, 41, 9]


def test_breaks_that_may_be_text_between_two_images_are_refused():
    image, settings, maker, _ = FAMILIES["rows without a processor"]
    with pytest.raises(StrategyRefused, match=r"in 6 places of the prompts.*Guard\(model, processor\)"):
        removed([1, *image, 40, 41, *image, 9], settings, maker, 2)


def test_tiles_that_may_be_images_are_refused():
    tiles = {"pixel_values": torch.zeros(1, 2, 3, 4, 4)}
    with pytest.raises(StrategyRefused, match="nothing tells text between two images from what was written for one"):
        removed([1, FAKE, ROW, IMG, IMG, FAKE, TILE, IMG, IMG, FAKE, 9], config(), None, 0, **tiles)
    maker = processor(fake_image_token="<fake>")
    assert removed([1, FAKE, ROW, IMG, IMG, FAKE, TILE, IMG, IMG, FAKE, 9], config(), maker, 0, **tiles) == [1, 9]


def test_white_space_between_two_images_stays_though_it_was_added_to_the_vocabulary():
    maker = processor()
    maker.tokenizer.added_tokens_decoder[NEWLINE] = "\n"
    assert removed([1, IMG, NEWLINE, IMG, 9], config(), maker, 2) == [1, NEWLINE, 9]


def test_two_images_in_two_pieces_each_are_removed():
    image, settings, maker, _ = FAMILIES["a low-resolution image before the other"]
    assert removed([1, *image, 40, *image, 9], settings, maker, 2) == [1, 40, 9]


@pytest.mark.parametrize("family", ["start and end in the config", "start and end as boi and eoi"])
def test_two_images_side_by_side_are_two(family):
    image, settings, maker, entries = FAMILIES[family]
    asked = request([1, *image, *image, 9], settings, maker, 2 * entries)
    replaced = build_branch_inputs(asked, Branch("x", tokens=(Replace((7,)),)), None)
    assert replaced["input_ids"][0].tolist() == [1, 7, 7, 9]


def test_marks_of_the_conversation_stay():
    """Added tokens that no name links to images, next to an image or between two."""
    maker = processor(image_token="<img>")
    assert removed([1, LABEL, IMG, IMG, LABEL_END, 9], config(), maker) == [1, LABEL, LABEL_END, 9]
    assert removed([LABEL, 8, IMG, LABEL_END, NEWLINE, LABEL, 8, IMG, 9], config(), maker, 2) == [
        LABEL, 8, LABEL_END, NEWLINE, LABEL, 8, 9,
    ]  # fmt: skip


def test_names_of_sounds_of_numbers_and_of_the_conversation_are_no_fences():
    settings = config(
        audio_start_token_id=40, num_image_tokens=41, im_start_token_id=42, im_end_token_id=43, image_size=44
    )
    assert removed([40, 41, 42, 44, IMG, 43, 40, 41], settings) == [40, 41, 42, 44, 43, 40, 41]
