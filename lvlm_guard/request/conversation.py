"""Pictures and words in, model inputs out; sequences in, answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ProcessorNeeded, describe_error, quote
from lvlm_guard.outputs import sequences
from lvlm_guard.protocols import Config, Model, Processor
from lvlm_guard.request.expansions import TOKENIZING
from lvlm_guard.request.messages import Conversation, content_item, read_messages
from lvlm_guard.request.picture_loading import PictureReader
from lvlm_guard.request.picture_sources import LOCAL_ONLY, PictureSources
from lvlm_guard.request.recent_pictures import RecentPictures
from lvlm_guard.request.requests import OPTIONS_OF_TEXT, Pictures

BATCH_OF_ARRAYS = 4
"""Axes of an array that holds several pictures."""
IMAGE_OPTIONS = ("images_kwargs", "common_kwargs")
TEXT_OPTIONS = ("text_kwargs", "common_kwargs")
"""Options of a processor that hold options for pictures, and for text; one of the same name beside them comes first."""


def prepare_inputs(
    model: Model,
    processor: Processor | None,
    recent: RecentPictures | None,
    images: Any,
    text: Any,
    messages: Any,
    options: Mapping[str, Any],
    sources: PictureSources = LOCAL_ONLY,
) -> Any:
    """Return the processor's batch for `Guard.inputs`, and remember its pictures in `recent`.

    Raises:
        ProcessorNeeded: There is no processor.
        InputError: Neither or both of text and messages, a picture or message that cannot be read, more or fewer pictures than
            places for them, or what the processor refuses.
    """
    if processor is None:
        raise ProcessorNeeded("guard.inputs needs the processor: Guard(model, processor).")
    if (text is None) == (messages is None):
        raise InputError("Give either text= or messages= to guard.inputs.")
    values, groups = _list_images(images)
    counts: tuple[int, ...] | None = None
    settings = _read_options(options)
    if messages is None:
        prompts = _list_prompts(text)
    else:
        conversation = read_messages(messages)
        values, groups = conversation.place(values), None
        counts = tuple(map(len, conversation.pictures))
        prompts = [_apply_template(processor, each) for each in conversation.conversations]
        _leave_out_second_start(processor, prompts, settings)
    reader, settings = _create_reader(processor, settings, sources)
    pictures = _read_pictures(reader, values)
    _count_places(processor, prompts, len(pictures))
    process = PictureProcess(processor, tuple(prompts), settings, groups, counts)
    batch = _move(process(pictures), model)
    _check_ids(batch, model.config, with_pictures=bool(pictures))
    if pictures and recent is not None:
        recent.remember(batch, _describe_pictures(pictures, process))
    return batch


def decode_answers(processor: Processor, output: Any, start: int, *, many: bool) -> Any:
    """Return the texts of the answers, which begin at `start` in every row: a list, or the text itself for a single one unless `many`."""
    texts = processor.batch_decode(sequences(output)[:, start:], skip_special_tokens=True)
    texts = [text.strip() for text in texts]
    return texts if many or len(texts) != 1 else texts[0]


def write_question(text: str, picture: Any) -> dict[str, Any]:
    """Return one message of a user: a picture and a question about it."""
    return {"role": "user", "content": [content_item("image", picture), content_item("text", text)]}


@dataclass(frozen=True, eq=False)
class PictureProcess:
    """Turns pictures into model inputs, with the prompts and options of one call of `Guard.inputs`.

    Args:
        processor: The processor.
        prompts: One for each row.
        options: Passed on to the processor.
        groups: How many pictures belong to each prompt, where the caller said so by a list of lists.
        counts: How many belong to each prompt, where that is known from messages; tried where a processor takes no flat list.
    """

    processor: Any
    prompts: tuple[str, ...]
    options: Mapping[str, Any]
    groups: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None

    def __call__(self, pictures: Sequence[Any]) -> Any:
        """Return the processor's batch of pictures, in the order of those of the call.

        Raises:
            InputError: The processor refuses them.
        """
        if self.groups is not None:
            return self._process(_group(pictures, self.groups))
        try:
            return self._process(list(pictures) or None)
        except InputError as error:
            if self.counts is None or len(self.counts) < 2:  # noqa: PLR2004 - one prompt has all of them
                raise
            return self._process_grouped(pictures, self.counts, error)

    def _process_grouped(self, pictures: Sequence[Any], counts: Sequence[int], refusal: InputError) -> Any:
        """Return the batch of pictures listed by prompt, which some processors insist on; raise `refusal` where they do not."""
        try:
            return self._process(_group(pictures, counts))
        except InputError:
            raise refusal from refusal.__cause__

    def _process(self, images: Any) -> Any:
        try:
            return self._process_padded_left(images)
        except Exception as error:  # a processor is foreign code, which raises anything
            raise InputError(
                f"{type(self.processor).__name__} cannot make inputs of these pictures, texts and options: "
                f"{describe_error(error)}"
            ) from error

    def _process_padded_left(self, images: Any) -> Any:
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        with TOKENIZING:
            side = getattr(tokenizer, "padding_side", None)
            tokenizer.padding_side = "left"
            try:
                return self.processor(images=images, text=list(self.prompts), return_tensors="pt", **self.options)
            finally:
                tokenizer.padding_side = side


def _group(pictures: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Return pictures as lists of these lengths."""
    supply = iter(pictures)
    return [[next(supply) for _ in range(count)] for count in counts]


def _list_images(images: Any) -> tuple[list[Any], tuple[int, ...] | None]:
    """Return pictures as a flat list, and how they were grouped where they came as a list of lists."""
    if images is None:
        return [], None
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == BATCH_OF_ARRAYS:
        return list(images), None
    if not isinstance(images, (list, tuple)):
        return [images], None
    if images and all(isinstance(group, (list, tuple)) for group in images):
        return [image for group in images for image in group], tuple(map(len, images))
    return list(images), None


def _list_prompts(text: Any) -> list[str]:
    prompts = [text] if isinstance(text, str) else text
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"text is a prompt or a list of prompts, got {quote(text)}.")
    return list(prompts)


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the processor, padding unless they say otherwise."""
    options = _copy_groups(options)
    for kind in _find_options(options, "return_tensors", (*TEXT_OPTIONS, *IMAGE_OPTIONS)):
        if not isinstance(kind, str) or kind != "pt":
            raise InputError(f"guard.inputs returns tensors of torch, got return_tensors={quote(kind)}.")
    if any(
        not isinstance(side, str) or side != "left" for side in _find_options(options, "padding_side", TEXT_OPTIONS)
    ):
        raise InputError("Prompts are padded on the left, where generate wants it: leave padding_side out.")
    padding = {} if _find_options(options, "padding", TEXT_OPTIONS) else {"padding": True}
    return {**padding, **_leave_out(options, "return_tensors", (*TEXT_OPTIONS, *IMAGE_OPTIONS))}


def _copy_groups(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with their groups as plain dicts."""
    try:
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}
    except Exception as error:  # a dict of a class of the user's may raise anything
        raise InputError(f"The options {', '.join(options)} cannot be read: {describe_error(error)}.") from error


def _find_options(options: Mapping[str, Any], name: str, groups: Sequence[str]) -> list[Any]:
    """Return the values of an option: its own, then those in groups of options; the first is the one that counts."""
    places = (options, *(options[group] for group in groups if group in options))
    return [place[name] for place in places if isinstance(place, Mapping) and name in place]


def _leave_out(options: Mapping[str, Any], name: str, groups: Sequence[str]) -> dict[str, Any]:
    """Return options without one of them, in groups neither."""
    settings = {key: value for key, value in options.items() if key != name}
    for group in groups:
        if isinstance(settings.get(group), Mapping):
            settings[group] = {key: value for key, value in settings[group].items() if key != name}
    return settings


def _create_reader(
    processor: Any, settings: dict[str, Any], sources: PictureSources
) -> tuple[PictureReader, dict[str, Any]]:
    """Return the reader of pictures for a processor, and the options without what they say of arrays, if all become pictures."""
    image_processor = getattr(processor, "image_processor", processor)
    default = getattr(image_processor, "do_rescale", True)
    rescales = (*_find_options(settings, "do_rescale", IMAGE_OPTIONS), default)[0] is not False
    layout = next(iter(_find_options(settings, "input_data_format", IMAGE_OPTIONS)), None)
    reader = PictureReader(sources, processor, rescales=rescales, layout=layout)
    return reader, _leave_out(settings, "input_data_format", IMAGE_OPTIONS) if rescales else settings


def _read_pictures(reader: PictureReader, values: Sequence[Any]) -> list[Any]:
    """Read every picture; an error says which of several it is about."""
    places = [f"Picture {number} of {len(values)}: " if len(values) > 1 else "" for number in range(1, len(values) + 1)]
    return [_read_picture(reader, value, place) for value, place in zip(values, places, strict=True)]


def _read_picture(reader: PictureReader, value: Any, place: str) -> Any:
    try:
        return reader.read(value)
    except InputError as error:
        raise InputError(f"{place}{error}") from None


def _apply_template(processor: Any, conversation: Conversation) -> str:
    """Return the prompt of a conversation by the processor's chat template."""
    try:
        prompt = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is foreign code, which raises anything
        raise InputError(
            f"The chat template of {type(processor).__name__} cannot take these messages: {describe_error(error)}"
        ) from error
    return str(prompt)


def _leave_out_second_start(processor: Any, prompts: Sequence[str], settings: dict[str, Any]) -> None:
    """Keep the tokenizer from adding a start token where the template wrote it, as transformers does."""
    start = getattr(getattr(processor, "tokenizer", processor), "bos_token", None)
    is_written = isinstance(start, str) and bool(start) and prompts[0].startswith(start)
    if is_written and not _find_options(settings, "add_special_tokens", TEXT_OPTIONS):
        settings["add_special_tokens"] = False


def _count_places(processor: Any, prompts: Sequence[str], pictures: int) -> None:
    """Refuse prompts with more or fewer placeholders than there are pictures.

    Some processors place a picture that no placeholder stands for, so none at all is left to them.
    """
    token = getattr(processor, "image_token", None)
    places = sum(prompt.count(token) for prompt in prompts) if isinstance(token, str) and token else 0
    if places and places != pictures:
        raise InputError(
            f"Places for pictures in the prompts ({token}): {places}; pictures: {pictures}. Give one picture for each place."
        )


def _move(batch: Any, model: Model) -> Any:
    """Move a processor's batch to the model's device; floats get its dtype."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
        raise InputError(
            "The processor returned no input_ids as a tensor: guard.inputs needs one for pictures and text."
        )
    for name, value in batch.items():
        batch[name] = _move_value(value, model)  # type: ignore[index]
    return batch


def _move_value(value: Any, model: Model) -> Any:
    if isinstance(value, Tensor):
        return value.to(model.device, model.dtype if value.is_floating_point() else None)
    return type(value)(_move_value(each, model) for each in value) if isinstance(value, (list, tuple)) else value


def _check_ids(batch: Mapping[str, Any], config: Config, *, with_pictures: bool) -> None:
    """Refuse empty prompts, and pictures that no token stands for."""
    ids = batch["input_ids"]
    if not ids.numel():
        raise InputError("The prompt is empty: it has no token.")
    token = anatomy.image_token_id(config)
    if with_pictures and token is not None and not bool((ids == token).any()):
        raise InputError(
            "There are pictures, but no place for them in the prompt. Write the model's image placeholder into text=, or pass "
            "messages= with an image item."
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be written: their text tells pictures of one batch from those of others."""
    try:
        repr(sorted(options.items()))
    except Exception as error:  # a value of a class of the user's may raise anything
        raise InputError(f"The options {', '.join(options)} cannot be written: {describe_error(error)}.") from error


def _describe_pictures(pictures: Sequence[Any], process: PictureProcess) -> Pictures:
    if all(isinstance(picture, Image.Image) for picture in pictures):
        options = {name: value for name, value in process.options.items() if name not in OPTIONS_OF_TEXT}
        _check_options(options)
        return Pictures(tuple(pictures), process, options=(options,) * len(pictures))
    return Pictures(
        (),
        process,
        missing="Pictures that come as floats are not edited or asked about: pass them as uint8, without do_rescale.",
    )
