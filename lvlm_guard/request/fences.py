"""The tokens that a processor writes round and between the placeholders of an image, by the names they are given."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard import anatomy

VISUAL = re.compile(
    r"(?:^|_)(?:image|img|vision|visual|boi|eoi|tile|patch|slice|row|col|grid|video|frame)(?:_|$)|^im_(?:start|end|newline)_id$"
)
OF_PARTS = re.compile(r"(?:^|_)(?:tile|patch|slice|row|col|grid|frame)(?:_|$)")
"""Names of what a part of an image stands between, rather than the whole."""
FOREIGN = re.compile(r"^num_|audio|^(?:video|image)_token_(?:id|index)$")
"""Names of numbers, of sounds, and of placeholders themselves."""
WORDS_OF_IMAGES = re.compile(r"(?:^|_)(?:image|img|vision|visual)(?:_|$)")
"""Special tokens that speak of images; those of tiles, rows and frames may as well be text about tables."""
NAMES_OF_IDS = re.compile(r"_(?:id|index)$")
NAMES_OF_LISTS = re.compile(r"_token_ids$")
NAMES_OF_WORDS = re.compile(r"(?:^|_)(?:token|tag|placeholder)$")
OPENING = re.compile(r"(?:^|_)(?:start|begin|boi|bos|open)(?:_|$)")
CLOSING = re.compile(r"(?:^|_)(?:end|eoi|eos|close)(?:_|$)")


@dataclass(frozen=True)
class Fences:
    """Tokens that belong to an image without standing for a part of it.

    Args:
        named: Ids that config or processor name after images.
        opening: Those of them that begin an image, or a label of it.
        closing: Those of them that end one.
        special: Ids that no text is tokenised into, whatever they are for; empty without a tokenizer.
        frames: What the processor writes before and behind the placeholders of a whole image, where it keeps that as a text; the
            tokens of each joined.
        ends: Ids that begin, end and pad a prompt, and the one of unknown words.
        tokenizer: The tokenizer, or None.
    """

    named: frozenset[int] = frozenset()
    opening: frozenset[int] = frozenset()
    closing: frozenset[int] = frozenset()
    special: frozenset[int] = frozenset()
    frames: tuple[tuple[str, str], ...] = ()
    ends: frozenset[int] = frozenset()
    tokenizer: Any = None

    @property
    def marks(self) -> frozenset[int]:
        """Every id that is no word of a text."""
        return self.named | self.special | self.ends

    def join(self, ids: Sequence[int]) -> str:
        """Return tokens as the vocabulary writes them, joined into one text; empty without a vocabulary."""
        if not hasattr(self.tokenizer, "convert_ids_to_tokens"):
            return ""
        return "".join(str(self.tokenizer.convert_ids_to_tokens(token)) for token in ids)

    def find_token(self, text: str) -> int | None:
        """Return the token that the vocabulary writes like this; None where it has none."""
        return next(_read_word(text, self.tokenizer), None)

    def is_blank(self, token: int) -> bool:
        """Whether a token is white space."""
        text = self.tokenizer.decode([token]) if hasattr(self.tokenizer, "decode") else ""
        return bool(text) and not text.strip()


def find_placeholder(config: Any, processor: Any = None) -> int | None:
    """Return the id that stands for parts of an image in a prompt: by the config, else by the processor; None without one."""
    token = anatomy.image_token_id(config)
    if token is not None or processor is None:
        return token
    named = getattr(processor, "image_token_id", None)
    word = getattr(processor, "image_token", None)
    tokenizer = getattr(processor, "tokenizer", processor)
    words = _read_word(word, tokenizer) if isinstance(word, str) else iter(())
    return named if isinstance(named, int) else next(words, None)


def find_fences(config: Any, processor: Any = None) -> Fences:
    """Return the fences of a model's images, as far as its config and its processor or tokenizer tell."""
    tokenizer = getattr(processor, "tokenizer", processor)
    parts = [value for value in vars(config).values() if hasattr(value, "to_dict")]  # configs inside the config
    owners = [owner for owner in (config, *parts, processor, tokenizer) if owner is not None]
    named = [pair for owner in owners for pair in _read_names(owner, tokenizer)] + list(_read_added(tokenizer))
    placeholders = {find_placeholder(config, processor), anatomy.video_token_id(config)}
    names = [(name, token) for name, token in named if token not in placeholders]
    of_images = [(name, token) for name, token in names if not OF_PARTS.search(name)]
    return Fences(
        frozenset(token for _, token in names),
        frozenset(token for name, token in of_images if OPENING.search(name)),
        frozenset(token for name, token in of_images if CLOSING.search(name)),
        _find_special(tokenizer),
        tuple(_read_frames(processor, tokenizer, find_placeholder(config, processor))),
        _find_ends(tokenizer),
        tokenizer,
    )


def _read_names(owner: Any, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Yield the tokens that an owner names after images, with their names."""
    names = {
        *getattr(owner, "__dict__", ()),
        *getattr(owner, "attribute_map", ()),
        *getattr(owner, "special_tokens_map", ()),
    }
    names |= {name for kind in type(owner).__mro__ for name in vars(kind)}  # what properties and classes name
    for name in sorted(filter(_classify, names)):
        plain, kind = name.strip("_").lower(), _classify(name)
        if kind == "ids":
            value = getattr(owner, name, None)
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from ((plain, token) for token in values if isinstance(token, int) and not isinstance(token, bool))
        elif isinstance(word := getattr(owner, name, None), str):
            yield from ((plain, token) for token in _read_word(word, tokenizer))


@functools.lru_cache(maxsize=4096)
def _classify(name: str) -> str:
    """Return whether a name is one of ids or of words for what stands round images; empty where it is neither."""
    plain = name.strip("_").lower()
    if not VISUAL.search(plain) or FOREIGN.search(plain):
        return ""
    if NAMES_OF_IDS.search(plain) or NAMES_OF_LISTS.search(plain):
        return "ids"
    return "words" if NAMES_OF_WORDS.search(plain) else ""


def _read_added(tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Yield the tokens that were added to a vocabulary and speak of images themselves, such as `<fake_token_around_image>`."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    for token, word in added.items() if isinstance(added, dict) else ():
        plain = str(word).strip("<|>[]/").lower()
        if WORDS_OF_IMAGES.search(plain) and not FOREIGN.search(plain):
            yield plain, token


def _read_word(word: str, tokenizer: Any) -> Iterator[int]:
    """Yield the id of a word that is a token of its own."""
    if hasattr(tokenizer, "convert_tokens_to_ids"):
        token = tokenizer.convert_tokens_to_ids(word)
        if isinstance(token, int) and token != getattr(tokenizer, "unk_token_id", None):
            yield token


def _find_special(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that were added to a tokenizer's vocabulary, without those that begin, end and pad a prompt."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    return frozenset(added) - _find_ends(tokenizer) if isinstance(added, dict) else frozenset()


def _find_ends(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that begin, end and pad a prompt, and the one of unknown words."""
    ends = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk"))
    return frozenset(token for token in ends if isinstance(token, int))


def _read_frames(processor: Any, tokenizer: Any, placeholder: int | None) -> Iterator[tuple[str, str]]:
    """Yield what stands before and behind the placeholders in texts of a whole image that a processor keeps, tokens joined."""
    if not hasattr(tokenizer, "convert_ids_to_tokens") or not placeholder:
        return
    word = str(tokenizer.convert_ids_to_tokens(placeholder))
    for text in getattr(processor, "__dict__", {}).values():
        if not isinstance(text, str) or text.count(word) < 2:  # noqa: PLR2004 - a placeholder by itself is no whole image
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [index for index, token in enumerate(ids) if token == placeholder]
        if places:
            parts = ids[: places[0]], ids[places[-1] + 1 :]
            before, after = ("".join(map(str, map(tokenizer.convert_ids_to_tokens, part))) for part in parts)
            yield before, after
