"""Without the image, nothing is left of the words that a processor wrote for it, and all of the user's."""

import gc
import string

import pytest
import torch
import transformers
from PIL import Image
from saved_models import PROCESSORS, make_picture_processor
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from lvlm_guard import Branch, Replace, StrategyRefused
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.expansions import _LEARNT, learn_expansions
from lvlm_guard.request.fences import find_fences
from lvlm_guard.request.pixel_layouts import read_layout
from lvlm_guard.request.prompts import count_placeholders
from lvlm_guard.request.requests import Request
from lvlm_guard.testing.tiny import IMAGE_TOKEN, tiny

WIDE, TALL, SQUARE = (1024, 256), (256, 768), (300, 300)
SENTENCE = "Here is the original image"
WORDS = SENTENCE.replace(" ", "\u2581")
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<boi>": 98, "<eoi>": 99, "<image>": IMAGE_TOKEN, "<fake>": 101}
LINES = [("\n", "k"), ("\nk", "y"), ("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n"), ("?", "\n"), (":", "\u2581")]
"""Tokens that hold more than a character, some of them of an image and of the text beside it."""


def tokenizer(**names):
    """Characters are tokens, as are some lines; spaces are visible."""
    words = [*string.ascii_letters, *".,:?<>_-123", "\u2581", "\n", *("".join(pair) for pair in LINES)]
    free = (index for index in range(128) if index not in SPECIAL.values())
    model = models.BPE({**SPECIAL, **dict(zip(words, free, strict=False))}, LINES, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left", extra_special_tokens={"image_token": "<image>", **names},
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def gemma3(**names):
    pictures = make_picture_processor("Gemma3ImageProcessor", size={"height": 20, "width": 20})
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>")
    return transformers.Gemma3Processor(pictures, words, image_seq_length=4, **names)


def idefics3():
    pictures = make_picture_processor(
        "Idefics3ImageProcessor", size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return transformers.Idefics3Processor(pictures, tokenizer(fake_image_token="<fake>"), image_seq_len=4)


def asked(processor, name, texts, sizes, **options):
    """The request of texts with the sizes of their pictures."""
    noise = torch.Generator().manual_seed(0)
    pictures = [
        [Image.fromarray(torch.randint(256, (*size[::-1], 3), generator=noise).byte().numpy()) for size in row]
        for row in sizes
    ]
    inputs = processor(images=pictures, text=list(texts), padding=True, return_tensors="pt", images_kwargs=options)
    return Request(dict(inputs), {}, tiny(name)[0].config, processor)


def without_images(request, *edits):
    branch = Branch("gone", tokens=edits) if edits else Branch("gone", image="removed")
    inputs = build_branch_inputs(request, branch, None)
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def text_of(processor, rows):
    return ["".join(processor.tokenizer.convert_ids_to_tokens(row)) for row in rows]


@pytest.mark.parametrize("scans", [True, False])
@pytest.mark.parametrize("size", [WIDE, TALL, (512, 256), SQUARE])
def test_crops_and_the_words_between_them_go_with_the_image(size, scans):
    processor, text = gemma3(), "user: <boi>is it here.\n"
    request = asked(processor, "gemma3", [text], [[size]], do_pan_and_scan=scans)
    assert without_images(request) == [processor.tokenizer(text.replace("<boi>", ""))["input_ids"]]
    (letter,) = processor.tokenizer("c")["input_ids"]
    assert without_images(request, Replace((letter,))) == [processor.tokenizer(text.replace("<boi>", "c"))["input_ids"]]
    scanned = WORDS in text_of(processor, request.input_ids)[0]
    assert scanned == (scans and size != SQUARE) == (len(request.inputs["pixel_values"]) > 1), "no power"


def test_several_images_in_a_batch_each_with_its_crops_or_without():
    processor = gemma3()
    texts = ["a <boi>b <boi> c <boi>", "<boi><boi>", "help you see better: <boi>d"]
    request = asked(processor, "gemma3", texts, [[WIDE, SQUARE, TALL], [SQUARE, WIDE], [WIDE]], do_pan_and_scan=True)
    left = without_images(request)
    assert left == [processor.tokenizer(text.replace("<boi>", ""))["input_ids"] for text in texts]
    assert bool((request.attention_mask == 0).any()), "no padding, no power"


def test_the_crops_of_an_image_are_one_image():
    """So they share their noise, and where the images of a row begin is known."""
    request = asked(gemma3(), "gemma3", ["<boi>a<boi>"], [[WIDE, SQUARE]], do_pan_and_scan=True)
    tokens = count_placeholders(request)
    assert tokens == [[20, 4]]
    layout = read_layout("pixel_values", request.inputs["pixel_values"], request.inputs, tokens)
    assert [len(pieces) for pieces in layout.images] == [5, 1]


@pytest.mark.parametrize("scans", [True, False])
@pytest.mark.parametrize(
    "text", ["user\n<boi>is it?\n", "user\n<boi>\nis it?\n", "<boi>\n", "a<boi><boi>b", "a\n<boi><boi>\nb"]
)
def test_of_a_token_that_holds_text_of_both_the_part_of_the_user_stays(text, scans):
    processor = gemma3()
    request = asked(processor, "gemma3", [text], [[WIDE] * text.count("<boi>")], do_pan_and_scan=scans)
    left = without_images(request)
    assert text_of(processor, left) == text_of(processor, processor.tokenizer([text.replace("<boi>", "")])["input_ids"])


def test_a_part_of_a_token_that_is_no_token_is_refused():
    request = asked(gemma3(), "gemma3", ["a<boi>ky"], [[SQUARE]])
    with pytest.raises(StrategyRefused, match="the user's part of it is no token: put a space or a line between"):
        without_images(request)


def test_words_that_the_processor_might_have_written_are_refused():
    processor = gemma3()
    request = asked(processor, "gemma3", [f"{SENTENCE} <boi>and what."], [[SQUARE]])
    with pytest.raises(
        StrategyRefused, match="words that Gemma3Processor writes for an image, but not as it writes them"
    ):
        without_images(request)
    elsewhere = asked(processor, "gemma3", [f"{SENTENCE}. <boi>and what."], [[SQUARE]])
    assert without_images(elsewhere) == [processor.tokenizer(f"{SENTENCE}. and what.")["input_ids"]]


@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE])
def test_rows_and_columns_in_words_go_too(size):
    """Where they are no tokens of their own."""
    processor = idefics3()
    request = asked(processor, "idefics3", ["a <image>b", "c<image> d"], [[size], [SQUARE]])
    assert without_images(request) == [processor.tokenizer(text)["input_ids"] for text in ("a b", "c d")]
    assert "<row_1_col_1>" in text_of(processor, request.input_ids)[0], "no power"


def test_a_processor_is_tried_once_and_forgotten_with_it():
    processor, calls = gemma3(), []
    request = asked(processor, "gemma3", ["<boi>a"], [[WIDE]], do_pan_and_scan=True)
    own = type(processor).__call__
    counted = type(
        "Counted", (type(processor),), {"__call__": lambda self, **given: calls.append(1) or own(self, **given)}
    )
    processor.__class__ = counted
    without_images(request)
    tried = len(calls)
    without_images(request)
    assert len(calls) == tried > 0
    key = id(processor), IMAGE_TOKEN
    assert key in _LEARNT
    del request, processor
    gc.collect()
    assert key not in _LEARNT


def test_nothing_is_learnt_of_processors_without_words():
    processor = PROCESSORS["llava"]()
    fences = find_fences(tiny("llava")[0].config, processor)
    assert learn_expansions(processor, IMAGE_TOKEN, fences) == ()
    assert learn_expansions(None, IMAGE_TOKEN, fences) == ()
