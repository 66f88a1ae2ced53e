"""Texts of clients that a tokenizer would not read as text: image tokens, ends, and marks of a chat template."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from lvlm_guard.serving.api_errors import ApiError


class SpecialTexts:
    """Finds special tokens in texts.

    Args:
        processor: The model's processor.
    """

    def __init__(self, processor: Any) -> None:
        # A copy: tokenizers are not made to be shared by threads, and the worker's own pads meanwhile.
        self._tokenizer = copy.deepcopy(getattr(processor, "tokenizer", processor))
        self._lock = threading.Lock()
        tokens = {name: token for token, name in _list_special(self._tokenizer)}
        places = (getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token"))
        self._names = {*tokens, *(name for name in places if isinstance(name, str) and name)}
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        self._ids = {token for token in tokens.values() if token != unknown}

    def check(self, text: str, param: str) -> None:
        """Refuse a text that holds a special token of this model.

        Raises:
            ApiError: It does; a picture belongs into an `image_url` part, and nothing else of a prompt is the client's to write.
        """
        name = next((name for name in self._names if name in text), None)
        if name is None and self._ids:
            name = self._find_by_id(text)
        if name is not None:
            raise ApiError(
                400,
                f"'{param}' holds {name!r}, which this model reads as a token of its own, not as text. Leave it out; pictures "
                "go into parts of the type 'image_url'.",
                "special_token",
                param=param,
            )

    def _find_by_id(self, text: str) -> str | None:
        """Return a special token that the tokenizer finds in a text in another spelling."""
        with self._lock:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            token = next((token for token in ids if token in self._ids), None)
            return None if token is None else str(self._tokenizer.decode([token]))


def _list_special(tokenizer: Any) -> Iterable[tuple[int, str]]:
    """Yield id and text of every special token."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if isinstance(added, Mapping):
        yield from ((token, str(entry)) for token, entry in added.items() if getattr(entry, "special", False))
    names = getattr(tokenizer, "all_special_tokens", None) or ()
    yield from zip(getattr(tokenizer, "all_special_ids", ()), names, strict=False)
