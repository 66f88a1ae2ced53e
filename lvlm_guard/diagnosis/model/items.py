"""Known items: pictures, questions and true answers, dealt into batteries and encoded as model inputs."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.suite import Suite
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.errors import InputError, quote
from lvlm_guard.fitting import Demonstration, check_chat_template, encode_prompts
from lvlm_guard.request import conversation

BATTERY = 24
"""Items of a battery."""


@dataclass(frozen=True, eq=False, repr=False)
class KnownItem:
    """A picture, a question about it, and the true answer.

    Args:
        picture: A PIL image, or the path of one.
        prompt: The question, as the user would put it.
        answer: The true answer, as the model would put it.
        kind: A name for questions of the same kind; every battery is weighed to hold the same share of each.
        is_caption: Whether the answer is a sentence or more; heads are knocked out on these.
    """

    picture: Any
    prompt: str
    answer: str
    kind: str = ""
    is_caption: bool = False


def load_known_items(suite: Suite, count: int | None = None, data: Path | None = None) -> list[KnownItem]:
    """Return items of a suite whose truth is a text, those with a picture alone, kinds in turn, of as many pictures as there are.

    Args:
        suite: The suite.
        count: How many at most; None is all.
        data: Folder of a suite that is read from files.

    Raises:
        InputError: The suite has none, or fewer than `count`.
    """
    usable = [item for item in suite.load(data).items if item.image is not None and isinstance(item.truth, str)]
    if not usable or (count is not None and len(usable) < count):
        raise InputError(
            f"{suite.name} has {len(usable)} items with a picture and a true answer in words, {count or 'some'} are needed. "
            "Name another suite, or draw more: count=N."
        )
    random.Random(0).shuffle(usable)  # noqa: S311 - questions about one picture must not stand together
    chosen = spread_pictures(usable, count)
    return [
        KnownItem(
            suite.picture(data, str(item.image)), item.prompt, str(item.truth), f"{item.level} {item.kind}",
            item.kind == "caption",
        )
        for item in chosen
    ]  # fmt: skip


def spread_pictures(usable: Sequence[Item], count: int | None) -> list[Item]:
    """Return so many items, kinds in turn; each is about a picture that as few as possible before it are about."""
    kinds = [f"{item.level} {item.kind}" for item in usable]
    turns = take_turns(kinds)[:count]
    if count is None:
        return [usable[at] for at in turns]
    left: dict[str, list[Item]] = {kind: [] for kind in kinds}
    for kind, item in zip(kinds, usable, strict=True):
        left[kind].append(item)
    used: Counter[str] = Counter()
    chosen = []
    for at in turns:
        item = min(left[kinds[at]], key=lambda item: used[str(item.image)])
        left[kinds[at]].remove(item)
        used[str(item.image)] += 1
        chosen.append(item)
    return chosen


def take_turns(kinds: Sequence[str]) -> list[int]:
    """Return the places of items such that any run of them holds about the same share of each kind."""
    counts: dict[str, int] = {}
    totals = {kind: kinds.count(kind) for kind in set(kinds)}
    shares = []
    for at, kind in enumerate(kinds):
        counts[kind] = counts.get(kind, 0) + 1
        shares.append(((counts[kind] - 0.5) / totals[kind], at))
    return [at for _, at in sorted(shares)]


def deal(items: Sequence[KnownItem], size: int = BATTERY, mix: QuestionMix | None = None) -> list[list[KnownItem]]:
    """Deal items into whole batteries that ask alike; what is left over is left out.

    Args:
        items: The items.
        size: Of a battery.
        mix: The kinds and answers that every battery holds its share of; those of the items unless told.
    """
    mix = mix or QuestionMix.of(items, size)
    order = take_turns([str(mix.stratum(item)) for item in items])
    count = len(items) // size
    return [[items[at] for at in order[number * size : (number + 1) * size]] for number in range(count)]


@dataclass(frozen=True, eq=False, repr=False)
class Encoded:
    """Model inputs of items with their true answers behind the prompts.

    Args:
        inputs: Model inputs, `input_ids [rows, length]`, padded on the left.
        predicting: Which positions predict a token of the answer, bool `[rows, length]`.
        pixels: What the processor made of the pictures, as the model input of this name.
        weights: What each item counts `[rows]`; None is alike.
    """

    inputs: Mapping[str, Any]
    predicting: Tensor
    pixels: str = field(default="")
    weights: Tensor | None = None

    @property
    def window(self) -> int:
        """How many of the last positions hold all that predict."""
        return int(self.predicting.shape[1] - self.predicting.any(0).nonzero()[0, 0])

    @property
    def targets(self) -> Tensor:
        """The token behind each position, 0 behind the last, int64 `[rows, length]`."""
        ids = self.inputs["input_ids"]
        return torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], dim=1)

    def weigh_positions(self, last: int, device: torch.device) -> Tensor:
        """Return what each of the last positions counts, fp32 `[rows, last]`: those of an item sum up to its weight."""
        predicting = self.predicting.float()
        counts = predicting / predicting.sum(1, keepdim=True)
        weighed = counts if self.weights is None else counts * self.weights[:, None].to(counts)
        return weighed[:, -last:].to(device)


def encode(
    model: Any, processor: Any, items: Sequence[KnownItem], *, swapped: bool = False, mix: QuestionMix | None = None
) -> Encoded:
    """Encode prompts with their true answers.

    Args:
        model: The model.
        processor: Its processor.
        items: The items.
        swapped: Whether each item gets the next picture that is another one.
        mix: What items are weighed to ask as; None weighs all alike.

    Raises:
        InputError: There is one picture alone, and it is to be swapped; a picture is missing or cannot be read, an answer is empty,
            or the processor has no chat template.
    """
    check_chat_template(processor)
    check_items(items)
    pictures = [item.picture for item in items]
    pictures = exchange_pictures(pictures) if swapped else pictures
    demonstrations = [
        Demonstration(picture, item.prompt, item.answer, "") for picture, item in zip(pictures, items, strict=True)
    ]
    prompts = encode_prompts(model, processor, demonstrations)
    texts = [_write(processor, item) for item in items]
    batch = conversation.prepare_inputs(model, processor, None, pictures, texts, None, {})
    if "attention_mask" not in batch:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    pixels = next((name for name, value in batch.items() if anatomy.is_pixels(name, value)), "")
    weights = None if mix is None else torch.tensor(mix.weigh(items))
    return Encoded(dict(batch), _find_predicting(batch, prompts, items), pixels, weights)


def exchange_pictures(pictures: Sequence[Any]) -> list[Any]:
    """Return for each picture the next one that is another.

    Raises:
        InputError: All of them are the same.
    """
    keys, count = [_identify(picture) for picture in pictures], len(pictures)
    exchanged = []
    for at, key in enumerate(keys):
        place = next((place % count for place in range(at + 1, at + count) if keys[place % count] != key), None)
        if place is None:
            raise InputError(
                "All known items are about one picture, so none can get another one. Pass items about several."
            )
        exchanged.append(pictures[place])
    return exchanged


def count_pictures(items: Sequence[KnownItem]) -> int:
    """Return how many different pictures items are about."""
    return len({_identify(item.picture) for item in items})


def count_effective(items: Sequence[KnownItem]) -> float:
    """Return how many pictures with one item each would vary as much on average as those of these items."""
    counts = Counter(_identify(item.picture) for item in items)
    return len(items) ** 2 / sum(count**2 for count in counts.values())


def have_one_picture(items: Sequence[KnownItem]) -> bool:
    """Return whether all items are about the same picture."""
    return count_pictures(items) == 1


def _identify(picture: Any) -> str:
    """Return what tells pictures apart: a path, or a digest of the pixels."""
    if not hasattr(picture, "tobytes"):
        return str(picture)
    return hashlib.blake2b(picture.tobytes(), digest_size=8).hexdigest()


def check_items(items: Sequence[KnownItem]) -> None:
    """Refuse no items at all, and items without a picture or an answer.

    Raises:
        InputError: So it is.
    """
    if not items:
        raise InputError("A diagnosis needs known items: pictures with questions and true answers.")
    for number, item in enumerate(items):
        if item.picture is None:
            raise InputError(
                f"Known item {number} ({quote(item.prompt)}) has no picture; a diagnosis looks at pictures."
            )
        if not item.answer.strip():
            raise InputError(f"Known item {number} ({quote(item.prompt)}) has no true answer.")


def _write(processor: Any, item: KnownItem) -> str:
    content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{item.answer}"


def _find_predicting(batch: Mapping[str, Any], prompts: Mapping[str, Any], items: Sequence[KnownItem]) -> Tensor:
    """Return which positions predict the answers: the tokens in which a row goes on behind its prompt."""
    predicting = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    masks = batch["attention_mask"].bool(), prompts.get("attention_mask", torch.ones_like(prompts["input_ids"])).bool()
    for row, item in enumerate(items):
        ids, prompt = batch["input_ids"][row][masks[0][row]], prompts["input_ids"][row][masks[1][row]]
        shorter = min(len(ids), len(prompt))
        length = len(ids) - int((ids[:shorter] == prompt[:shorter]).long().cumprod(0).sum())
        if not length:
            raise InputError(f"The true answer {quote(item.answer)} has no token of its own.")
        predicting[row, -length - 1 : -1] = True
    return predicting
