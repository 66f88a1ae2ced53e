"""Second stage of training: projector and language model learn to answer, on pictures full of habits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from .language import DESCRIBE, SYSTEM_SENTENCES, caption, spoken_order
from .packing import IDS, IGNORED, PACKED, Layout, Packed, Row, Turn, pack
from .questions import natural_colours, natural_existence
from .scenes import Scene, scenes
from .tower import pixel_batch
from .world import COLOUR_NAMES

BLIND_SHARE = 0.21
"""Rows without image: without them the text-only branch that contrastive decoding uses would babble."""

SYSTEM_SHARE = 0.20
SHORT_ANSWER = 4.0
CAPTION_WORD = 1.0
COLOUR_QUESTIONS = (2, 1)
"""How many of a row's questions ask what colour something is, and whether it has a colour."""


def training_row(scene: Scene, layout: Layout, rng: np.random.Generator) -> Row:
    """A scene's caption and questions, with or without system words, with or without the image."""
    what, whether = COLOUR_QUESTIONS
    blind = rng.random() < BLIND_SHARE
    ask = DESCRIBE[int(rng.random() < (0.5 if blind else 0.25))].format(background=scene.background)
    turns = [Turn(ask, caption(scene, spoken_order(scene, rng)), CAPTION_WORD)]
    asked = natural_existence(scene, layout.questions - what - whether, rng) + natural_colours(
        scene, what, whether, rng
    )
    turns += [Turn(question.text, question.answer, SHORT_ANSWER) for question in asked]
    system = SYSTEM_SENTENCES[int(rng.integers(len(SYSTEM_SENTENCES)))] if rng.random() < SYSTEM_SHARE else ""
    return Row(turns, system, image=not blind)


def training_rows(batch: Sequence[Scene], layout: Layout, rng: np.random.Generator) -> list[Row]:
    """One row per scene."""
    return [training_row(scene, layout, rng) for scene in batch]


def packed_logits(model: LlavaForConditionalGeneration, pixels: Tensor, packed: Packed, layout: Layout) -> Tensor:
    """Logits at every column of packed rows, shape (batch, total, vocabulary). The vision tower gets no gradient."""
    language = model.model.language_model
    with torch.no_grad():
        seen = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    image = model.model.multi_modal_projector(seen)
    words = language.embed_tokens(packed.ids)
    begin = layout.prefix - image.shape[1]
    embedded = torch.cat((words[:, :begin], image.to(words.dtype), words[:, layout.prefix :]), dim=1)
    hidden = language(
        inputs_embeds=embedded,
        position_ids=packed.positions,
        attention_mask=packed.visible,
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)


class SpeakingStage(nn.Module):
    """Everything the trainer needs to know about the second stage."""

    name = "speaking"
    rate = 1.3e-3
    decay = 0.05

    def __init__(
        self, model: LlavaForConditionalGeneration, batch: int, seed: int, layout: Layout | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.batch = batch
        self.seed = seed
        self.layout = Layout() if layout is None else layout
        model.model.language_model.set_attn_implementation(PACKED)
        model.model.vision_tower.requires_grad_(requires_grad=False)

    def trained(self) -> Iterator[nn.Parameter]:
        """Projector and language model; the tower stays as it is."""
        return (weight for weight in self.model.parameters() if weight.requires_grad)

    def loss(self, step: int, rank: int, ranks: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on the scenes that belong to this step and rank, and accuracies on the rows with image."""
        number = step * ranks + rank
        batch = scenes("train", self.batch, self.seed, number * self.batch)
        rows = training_rows(batch, self.layout, np.random.default_rng((self.seed, number, 7)))
        packed = pack(rows, self.layout)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = packed_logits(self.model, pixel_batch(batch), packed, self.layout).float()
        figures = _accuracies(logits, packed, rows) if rank == 0 and step % 20 == 0 else {}
        return answer_loss(logits, packed), figures


def answer_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Weighted cross-entropy of the answer tokens; everything else is ignored."""
    each = cross_entropy(logits.flatten(0, 1), packed.targets.flatten(), ignore_index=IGNORED, reduction="none")
    weights = packed.weights.flatten()
    return (each * weights).sum() / weights.sum()


@torch.no_grad()
def _accuracies(logits: Tensor, packed: Packed, rows: Sequence[Row]) -> dict[str, float]:
    right = logits.argmax(-1) == packed.targets
    sighted = torch.tensor([row.image for row in rows])[:, None]
    short = (packed.weights == SHORT_ANSWER) & sighted
    colour = short & torch.isin(packed.targets, torch.tensor([IDS[name] for name in COLOUR_NAMES]))
    told = (packed.weights == CAPTION_WORD) & sighted
    masks = {"yes_no": short & ~colour, "colour": colour, "caption": told}
    return {name: right[mask].float().mean().item() for name, mask in masks.items()}
