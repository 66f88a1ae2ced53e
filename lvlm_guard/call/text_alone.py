"""A prompt without its image on the module that decodes, for models whose own generate runs on pixels only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.call.attachments import plain_generate
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward import PreparedDecode, capture_decode
from lvlm_guard.request.requests import Request


def prepare_text_alone(
    main: PreparedDecode, request: Request, inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> PreparedDecode:
    """Return a prompt without its image as the module that decodes prepares it, embedded as main's own text was.

    Args:
        main: Main as generate prepared it, a row for each request.
        request: What main was made of.
        inputs: Model inputs of the prompt without its image.
        settings: Settings of the loop.

    Raises:
        ModelRefused: The model makes something else of the prompt than its tokens say, so nobody knows it without the image.
    """
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if not torch.equal(main.input_ids, request.input_ids):
        if not torch.equal(text["attention_mask"], request.attention_mask) or not _same(text, request):
            raise ModelRefused("its generate decodes another prompt than it was given")
        text = {"input_ids": main.input_ids, "attention_mask": main.kwargs.get("attention_mask")}
    elif not _embeds_tokens(main, request):
        raise ModelRefused("its generate embeds the text of a prompt in a way of its own")
    carried = {name: value for name, value in inputs.items() if name in main.kwargs and name not in text}
    return capture_decode(plain_generate(main.module), {**text, **carried}, settings)


def _same(text: Mapping[str, Tensor], request: Request) -> bool:
    """Whether a prompt is that of the request, padding apart."""
    mask = request.attention_mask.bool()
    return torch.equal(text["input_ids"][mask], request.input_ids[mask])


def _embeds_tokens(main: PreparedDecode, request: Request) -> bool:
    """Whether the embeddings that main decodes from are, outside its images, those of its tokens."""
    embeddings = main.kwargs.get("inputs_embeds")
    if not isinstance(embeddings, Tensor):
        return True
    is_text = request.attention_mask.bool() & ~request.image_mask
    plain = main.module.get_input_embeddings()(request.input_ids[is_text])
    text = embeddings[is_text.to(embeddings.device)]
    return torch.equal(text, plain.to(text.device, text.dtype))
