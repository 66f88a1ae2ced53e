"""Second stage of training: projector and language model learn to answer, in the order of the curriculum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.picture import ACROSS, IMAGE_TOKENS, Span, pixel_batch
from lvlm_guard.testbed.training.curriculum import layout, lesson_rows, lesson_scenes
from lvlm_guard.testbed.training.packing import IDS, IGNORED, PACKED, Layout, Packed, TrainingRow, pack
from lvlm_guard.testbed.training.vision_stage import place_loss
from lvlm_guard.testbed.world.language import END


def packed_logits(model: Any, image: Tensor, packed: Packed, layout: Layout, span: Span) -> Tensor:
    """Logits at every column of packed rows, shape (batch, total, vocabulary)."""
    language = model.model.language_model
    words = language.embed_tokens(packed.ids)
    begin = layout.prefix - span.columns + len(span.before)
    embedded = torch.cat((words[:, :begin], image.to(words.dtype), words[:, begin + IMAGE_TOKENS :]), dim=1)
    hidden = language(
        inputs_embeds=embedded,
        position_ids=packed.positions,
        attention_mask=packed.visible,
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)


class LanguageStage(nn.Module):
    """Everything the trainer needs to know about the second stage."""

    name = "speaking"
    rate = 1.3e-3
    decay = 0.05

    def __init__(
        self,
        architecture: Architecture,
        model: Any,
        batch: int,
        seed: int,
        steps: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.architecture = architecture
        self.model = model
        self.place = nn.Linear(model.config.text_config.hidden_size, 2 * ACROSS)
        self.batch = batch
        self.seed = seed
        self.steps = steps
        self.layout = layout(architecture.span)
        self._encode = architecture.vision_encoder(model)
        model.model.language_model.set_attn_implementation(PACKED)
        architecture.tower(model).requires_grad_(requires_grad=False)

    def trained(self) -> Iterator[nn.Parameter]:
        """Projector and language model; the tower stays as it is."""
        return (weight for weight in self.parameters() if weight.requires_grad)

    def image(self, pixels: Tensor) -> Tensor:
        """The projected image tokens, shape (batch, image tokens, hidden). The vision tower gets no gradient."""
        with torch.no_grad():
            features = self._encode(pixels)[:, 1:]
        return self.architecture.project(self.model, features)

    def loss(self, step: int, rank: int, ranks: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on the scenes that belong to this step and rank, and accuracies on the rows with image."""
        number, progress = step * ranks + rank, step / self.steps
        batch = lesson_scenes(progress, self.batch, self.seed, number * self.batch)
        rows = lesson_rows(batch, progress, np.random.default_rng((self.seed, number, 7)))
        device = self.place.weight.device
        packed = pack(rows, self.layout, self.architecture.span).to(device)
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            image = self.image(pixel_batch(batch).to(device))
            logits = packed_logits(self.model, image, packed, self.layout, self.architecture.span).float()
            places = self.place(image).float()
        figures = accuracies(logits, packed, rows, self.layout) if rank == 0 and step % 20 == 0 else {}
        return answer_loss(logits, packed) + self.architecture.place[1] * place_loss(places), figures


def answer_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Weighted cross-entropy of the answer tokens; everything else is ignored."""
    each = cross_entropy(logits.flatten(0, 1), packed.targets.flatten(), ignore_index=IGNORED, reduction="none")
    weights = packed.weights.flatten()
    return (each * weights).sum() / weights.sum()


@torch.no_grad()
def accuracies(logits: Tensor, packed: Packed, rows: Sequence[TrainingRow], slots: Layout) -> dict[str, float]:
    """The share of right answer tokens in rows with image, by the first words of the question; end tokens apart."""
    right = ((logits.argmax(-1) == packed.targets) & (packed.targets != IDS[END])).cpu()
    answered = ((packed.targets != IGNORED) & (packed.targets != IDS[END])).cpu()
    counts: dict[str, list[float]] = {}
    for at, row in enumerate(rows):
        for slot, turn in enumerate(row.turns if row.image else ()):
            span = slice(slots.start(slot), slots.start(slot) + slots.room(slot))
            tally = counts.setdefault(_topic(turn.prompt), [0.0, 0.0])
            tally[0] += right[at, span].sum().item()
            tally[1] += answered[at, span].sum().item()
    return {topic: round(hits / total, 4) for topic, (hits, total) in sorted(counts.items())}


def _topic(prompt: str) -> str:
    words = prompt.split()
    if words[0] in ("describe", "what", "where"):
        return words[0]
    if "or" in words:
        return "choice"
    directions = {"left": "sideways", "right": "sideways", "above": "vertical", "below": "vertical"}
    return next(
        (directions[word] for word in words if word in directions), "exist" if words[1] != "the" else "is_colour"
    )
