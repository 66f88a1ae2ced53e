"""What the pictures of a call show: image tokens remembered in the prefill, and read by a fitted head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from lvlm_guard import Artefact, Generation, HiddenEdit, InputError, View
from lvlm_guard_evidence.grids import find_pictures
from lvlm_guard_evidence.head import KIND, EvidenceHead, HeadEvidence, read_head

HEADS = "patch_evidence heads"
"""Where `gen.state` keeps heads by their file."""

SAME = 0.05
"""Standard deviations of a picture's scores within which those of another request are of the same picture, computed in another row."""


class PictureEvidence(Protocol):
    """What one picture shows, as calibrated log-odds in nats; 0 is no opinion."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that are known, lower case, singular."""
        ...

    def existence(self, name: str) -> float | None:
        """Return log-odds that the picture shows such an object; None where the name is not known."""
        ...

    def attribute(self, name: str, value: str) -> float | None:
        """Return log-odds that the object has this value, as in `("mug", "red")`; None where it cannot be told."""
        ...

    def relation(self, subject: str, direction: str, reference: str) -> float | None:
        """Return log-odds that the subject lies `left`, `right`, `above` or `below`; None where it cannot be told."""
        ...

    def number(self, name: str) -> float | None:
        """Return the expected count; None where it cannot be told."""
        ...


@dataclass(frozen=True, eq=False)
class RowEvidence:
    """What the pictures of one row show together: of several, the one that shows most of what is asked for.

    Args:
        pictures: One or more.
    """

    pictures: tuple[HeadEvidence, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names that are known."""
        return self.pictures[0].names

    def existence(self, name: str) -> float | None:
        """Return the greatest log-odds of all pictures."""
        return _greatest(picture.existence(name) for picture in self.pictures)

    def attribute(self, name: str, value: str) -> float | None:
        """Return log-odds from the picture that shows the object most."""
        return self._most(name).attribute(name, value)

    def attributes(self, name: str) -> dict[str, float] | None:
        """Return log-odds of every value from the picture that shows the object most."""
        return self._most(name).attributes(name)

    def relation(self, subject: str, direction: str, reference: str) -> float | None:
        """Return log-odds from the picture that shows both objects most."""
        return self._most(subject, reference).relation(subject, direction, reference)

    def number(self, name: str) -> float | None:
        """Return the greatest count of all pictures."""
        return _greatest(picture.number(name) for picture in self.pictures)

    def _most(self, *names: str) -> HeadEvidence:
        def score_picture(picture: HeadEvidence) -> float:
            odds = [picture.existence(name) for name in names]
            return min((odd for odd in odds if odd is not None), default=0.0)

        return max(self.pictures, key=score_picture)


def load_head(gen: Generation, artefact: str | Path | EvidenceHead) -> EvidenceHead:
    """Return the head of an artefact, read once in a call.

    Raises:
        InputError: The file is no such artefact.
        StrategyRefused: It was fitted on another model or projector.
    """
    if isinstance(artefact, EvidenceHead):
        return artefact
    heads = gen.state.setdefault(HEADS, {})
    if (key := str(artefact)) not in heads:
        heads[key] = read_head(Artefact.load(artefact, KIND, gen.model))
    head: EvidenceHead = heads[key]
    if gen.model.hidden_size is not None and head.weight.shape[1] != gen.model.hidden_size:
        raise InputError(
            f"'patch_evidence' needs a head for tokens of {gen.model.hidden_size} numbers, and {artefact} reads {head.weight.shape[1]}: fit it "
            "again."
        )
    return head


def remember_tokens(gen: Generation, artefact: str | Path | EvidenceHead) -> HiddenEdit:
    """Return what a strategy yields in its hook `hidden`, so that `evidence_of` can tell what the pictures show.

    It changes nothing: it scores the image tokens that enter the decoder, once, in the prefill, or when a look runs its pictures.
    """
    head = load_head(gen, artefact)
    name = _row_name(artefact)

    def remember(hidden: Tensor, view: View) -> Tensor:
        view.gen.rows.put(name, _gather(hidden, view.image & view.positions, head))
        return hidden

    site: Literal["embedding", "residual"] = "residual" if head.layer else "embedding"
    layers = (max(head.layer - 1, 0), max(head.layer, 1))
    return HiddenEdit(site, remember, layers, positions="image", when="prefill", depends_on_end=False, observes=True)


def evidence_of(gen: Generation, artefact: str | Path | EvidenceHead) -> list[RowEvidence | None]:
    """Return what the pictures of each request show; None where a request has no image tokens.

    Available from `terms` on, in calls in which a strategy yielded `remember_tokens` for the same artefact.

    Raises:
        InputError: No strategy did.
    """
    head, name = load_head(gen, artefact), _row_name(artefact)
    requests = gen.prompt.ids.shape[0]
    if not bool(gen.prompt.image_mask.any()):
        return [None] * requests
    if name not in gen.rows:
        raise InputError(
            "'patch_evidence' needs image tokens, and none were remembered in this call: yield remember_tokens(gen, artefact) in the hook "
            "hidden, and ask for the evidence in terms, observe or finish."
        )
    rows = gen.rows[name]
    of_requests = rows[:: rows.shape[0] // requests].cpu()
    pictures = find_pictures(gen.prompt.inputs, gen.model.config, gen.prompt.image_mask.cpu())
    return [
        RowEvidence(
            tuple(head.read(scores[each.start : each.start + each.count], each.places()) for each in row_pictures)
        )
        if row_pictures
        else None
        for scores, row_pictures in zip(of_requests, pictures, strict=True)
    ]


def swap_rows(evidence: Sequence[RowEvidence | None]) -> list[RowEvidence | None]:
    """Return for each request the evidence of the next one about another picture; None where there is none.

    Questions about one picture often stand side by side, and the evidence of the next request would be the request's own.
    """
    return [
        next(
            (candidate for candidate in (*evidence[row + 1 :], *evidence[:row]) if _are_apart(row_evidence, candidate)),
            None,
        )
        for row, row_evidence in enumerate(evidence)
    ]


def _are_apart(first: RowEvidence | None, second: RowEvidence | None) -> bool:
    """Return whether two requests have image tokens, and not the same but for rounding."""
    if first is None or second is None:
        return False
    if len(first.pictures) != len(second.pictures):
        return True
    pairs = zip(first.pictures, second.pictures, strict=True)
    return any(_differ(picture.scores, counterpart.scores) for picture, counterpart in pairs)


def _differ(scores: Tensor, rival: Tensor) -> bool:
    return scores.shape != rival.shape or not torch.allclose(scores, rival, rtol=0.0, atol=SAME * float(scores.std()))


def _row_name(artefact: str | Path | EvidenceHead) -> str:
    return f"{KIND} scores {id(artefact) if isinstance(artefact, EvidenceHead) else artefact}"


def _gather(hidden: Tensor, image: Tensor, head: EvidenceHead) -> Tensor:
    """Return scores of the image tokens of each row `[rows, most tokens, scores]`; rows with fewer are filled up with 0."""
    counts = image.sum(1)
    scores = hidden.new_zeros((len(hidden), int(counts.max()), head.width), dtype=torch.float32)
    filled = torch.arange(scores.shape[1], device=hidden.device) < counts[:, None]
    scores[filled] = head.score(hidden[image])
    return scores


def _greatest(values: object) -> float | None:
    defined = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return max(defined, default=None)
