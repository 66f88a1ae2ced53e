"""A strategy that keeps what a model thinks of the tokens of an answer while it is made to say them; it changes nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from lvlm_guard.errors import InputError
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionCapture, HiddenEdit, View
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl
from lvlm_guard.strategy.loops import Revision

Feature: TypeAlias = Literal["image-free branch", "attention", "patch evidence"]
FEATURES: tuple[Feature, ...] = ("image-free branch", "attention", "patch evidence")
ATTENTION = "attention of an answer"
READER, GRIDS = "lvlm_guard_evidence.reading", "lvlm_guard_evidence.grids"
"""Offer `remember_tokens` and `evidence_of`, and `find_pictures`; found by name, since strategies are plugins."""
MOST_PATCHES = 2**24
"""Numbers of attention to patches that are kept, 64 MiB: beyond, later tokens have none."""


@dataclass(eq=False)
class AnswerRecord:
    """What was kept of one answer, token by token.

    Args:
        tokens: Log-probability, entropy and greatest probability of each token, and the best token's number, of what generate received.
        image_free: Log-probability of each token and the best token's number, of the branch without the image.
        masses: By layer, the attention of each head to the image, for each token `[heads]`.
        patches: For each token the attention to each image token, the mean over heads and layers `[image tokens]`.
        evidence: What a fitted head reads off the picture's tokens.
        grid: Rows and columns of the picture's image tokens; zeros where they fill no known grid.
    """

    tokens: list[Tensor] = field(default_factory=list)
    image_free: list[Tensor] = field(default_factory=list)
    masses: dict[int, list[Tensor]] = field(default_factory=dict)
    patches: list[Tensor] = field(default_factory=list)
    evidence: Any = None
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class AnswerRecorder:
    """Keep what is asked for of each token of an answer; nothing is changed.

    Args:
        ids: The tokens of the answer.
        record: Where it is kept.
        features: What is kept beside the probabilities.
        artefact: File made by `lvlm-guard fit evidence`; for patch evidence.
    """

    name: ClassVar[str] = "answer_recorder"
    observes: ClassVar[bool] = True
    asks: ClassVar[bool] = False

    ids: tuple[int, ...]
    record: Any
    features: frozenset[Feature] = frozenset()
    artefact: Path | None = None

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:  # noqa: ARG002 - the hook's signature
        """Run the same prompt without its image."""
        if "image-free branch" in self.features:
            yield Branch.without_image()

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionCapture]:  # noqa: ARG002 - as above
        """Look at the attention to the image."""
        if "attention" in self.features:
            yield AttentionCapture(ATTENTION, (0.0, 1.0), _select_image, depends_on_end=False)

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Let a fitted head read the picture's tokens."""
        if "patch evidence" in self.features:
            yield find_reader().remember_tokens(gen, self.artefact)

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep what is thought of the next token."""
        if gen.step >= len(self.ids):
            return
        token = self.ids[gen.step]
        self.record.tokens.append(measure(gen.combined[0, -1], token))
        if "image-free branch" in self.features:
            self.record.image_free.append(measure(gen.logits(Branch.without_image())[0, -1], token))
        if "attention" in self.features:
            self._keep_attention(gen)
        if gen.step == 0:
            self.record.grid = find_grid(gen)
        if "patch evidence" in self.features and gen.step == 0:
            self.record.evidence = find_reader().evidence_of(gen, self.artefact)[0]

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:  # noqa: ARG002 - as above
        """Revise nothing: strategies that finish are left out where `doubt` asks its questions, and so is this one."""
        return ()

    def _keep_attention(self, gen: Generation) -> None:
        """Keep sums over the image by head, and the mean over heads and layers by image token where all layers have the same."""
        by_layer = {layer: values for (key, layer), values in gen.observations.items() if key == ATTENTION}
        for layer, values in by_layer.items():
            self.record.masses.setdefault(layer, []).append(values[0, :, -1].sum(-1).cpu())
        counts = {values.shape[-1] for values in by_layer.values()}
        is_room = len(self.record.patches) * max(counts, default=0) < MOST_PATCHES
        if len(counts) == 1 and is_room and 0 not in counts:
            means = [values[0, :, -1].mean(0).cpu() for values in by_layer.values()]
            self.record.patches.append(torch.stack(means).mean(0))


def _select_image(probabilities: Tensor, view: View) -> Tensor:
    """Return the attention to image keys `[1, heads, predicting, image keys]` of the one row there is."""
    return probabilities[:1, ..., view.keys[0]]


def measure(logits: Tensor, token: int) -> Tensor:
    """Return log-probability of a token, entropy in nats, greatest probability, and the best token `[4]`, fp64 on the CPU."""
    logs = logits.float().log_softmax(-1)
    chances = logs.exp()
    best = chances.argmax(-1)
    entropy = torch.special.entr(chances).sum(-1)
    return torch.stack([logs[token].double(), entropy.double(), chances[best].double(), best.double()]).cpu()


def find_reader() -> Any:
    """Return the module that reads a fitted head.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(READER)
    except ImportError as error:
        raise InputError(
            f"Patch evidence is read by {READER}, which cannot be imported: leave it out. {error}"
        ) from error


def find_grid(gen: Generation) -> tuple[int, int]:
    """Return rows and columns of the image tokens of the one picture there is; zeros where no grid is known."""
    pictures = importlib.import_module(GRIDS).find_pictures(
        gen.prompt.inputs, gen.model.config, gen.prompt.image_mask.cpu()
    )
    return (pictures[0][0].rows, pictures[0][0].columns) if len(pictures[0]) == 1 else (0, 0)


class ForcedTokens:
    """A logits processor under which generate writes one answer, whatever the model would.

    Args:
        ids: The tokens of the answer.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        self._count = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - generate passes both
        """Leave the next token of the answer alone `[rows, vocab]`; behind its end, scores stay as they are."""
        if self._count >= len(self._ids):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._ids[self._count]] = 0
        self._count += 1
        return forced
