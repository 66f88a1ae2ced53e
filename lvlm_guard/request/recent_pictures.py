"""The pictures that model inputs were made of."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from lvlm_guard import anatomy
from lvlm_guard.request import pixel_parts
from lvlm_guard.request.picture_digests import digest_levels
from lvlm_guard.request.pixel_parts import PixelPart
from lvlm_guard.request.requests import Pictures

REMEMBERED_BYTES = 256 * 2**20
"""Levels of pictures that are remembered after their batch is gone, for copies of it."""
REMEMBERED_BATCHES = 1024
"""Batches that are remembered after they are gone."""
KNOWN_DIGESTS = 2**16
"""Digests of forgotten batches that are still recognised as such."""
AGAIN = "Make the inputs anew with guard.inputs, and pass them on as they are."
FORGOTTEN = f"The pictures behind these inputs were forgotten: their batch is gone, and many came after it. {AGAIN}"
CHANGED = f"The pixels were changed since guard.inputs made them, so the pictures behind them are unknown. {AGAIN}"
MIXED = f"Some of these pixels come from guard.inputs and some do not, so the pictures are unknown. {AGAIN}"
AMBIGUOUS = f"Different pictures have given these very pixels, and these inputs are a copy, so it is unclear which is meant. {AGAIN}"
EIGHT_BITS = f"These pixels are, or were, floats of eight bits, from which it cannot be told what pictures they were made of. {AGAIN}"
CUT = f"These pixels are a part of what guard.inputs made, and it is unclear which pictures they belong to. {AGAIN}"


@dataclass(frozen=True, eq=False)
class RememberedBatch:
    """One batch of `Guard.inputs`.

    Args:
        pictures: What it was made of.
        each: Whether each part is one picture.
    """

    pictures: Pictures
    each: bool
    fingerprints: tuple[str, ...] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        values = self.pictures.pictures
        marks = [digest_levels(picture, f"{picture.size}") for picture in values]
        options = [sorted(each.items()) for each in self.pictures.options]
        fingerprints = tuple(f"{mark} {each}" for mark, each in zip(marks, options, strict=True))
        object.__setattr__(self, "fingerprints", fingerprints)
        object.__setattr__(self, "size", sum(3 * picture.width * picture.height for picture in values))


@dataclass
class KnownDigest:
    """What a digest of a part, or of a whole batch, was made by; outlives the batches, for copies of them may be around.

    Args:
        fingerprint: What tells the pictures behind it from others, or `AMBIGUOUS` where different ones have given it; None where
            only parts have it that may hold several pictures.
        each: Whether it has never been a part that may hold several pictures.
        places: The batches that have it, and where.
    """

    fingerprint: str | None = None
    each: bool = True
    places: list[tuple[weakref.ref[RememberedBatch], int]] = field(default_factory=list)

    def add(self, fingerprint: str | None, batch: RememberedBatch, index: int) -> None:
        """Note another batch that has this digest."""
        if fingerprint is not None:
            self.fingerprint = fingerprint if self.fingerprint in (None, fingerprint) else AMBIGUOUS
        self.each = self.each and batch.each
        self.places = [*(place for place in self.places if place[0]() is not None), (weakref.ref(batch), index)]


@dataclass(frozen=True)
class RememberedPart:
    """One part of a batch: its place there."""

    batch: RememberedBatch
    index: int

    @property
    def fingerprint(self) -> str:
        """What tells its picture from others."""
        return self.batch.fingerprints[self.index]


class RecentPictures:
    """Knows which pictures inputs were made of, by every byte of their pixels; safe to share between threads.

    A batch's pictures are remembered as long as its pixels exist, and those of the last batches longer, so that copies on
    another device, in another dtype, or of some of its rows are known too.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owners: Any = WeakTensorKeyDictionary()
        self._last: deque[RememberedBatch] = deque()
        self._size = 0
        self._digests: dict[bytes, KnownDigest] = {}

    def __reduce__(self) -> str:
        """Be the same memory in copies, and that of the process where it is unpickled."""
        return "RECENT_PICTURES"

    def remember(self, inputs: Mapping[str, Any], pictures: Pictures) -> None:
        """Remember the pictures behind a batch of inputs, in the order of its pixels."""
        parts = pixel_parts.split_pixels(inputs)
        if not parts:
            return
        pixels = [value for name, value in inputs.items() if anatomy.is_pixels(name, value)]
        chains = [casts for casts in pixel_parts.CASTS if pixels[0].dtype not in casts[:1]]
        sequences = {tuple(pixel_parts.digest_part(part, casts) for part in parts) for casts in chains}
        each = len(parts) == len(pictures.pictures) and not any(map(pixel_parts.is_blank, parts))
        batch = RememberedBatch(pictures, each)
        with self._lock:
            for sequence in sequences:
                self._add_sequence(sequence, batch)
            self._carry(pixels, batch)
            self._keep(batch)
            self._forget_digests()

    def find(self, inputs: Mapping[str, Any]) -> Pictures | None:
        """Return the pictures behind `inputs`, or None when they were made elsewhere.

        The result says what is `missing` where the inputs come from `remember` but their pictures are not certain.
        """
        pixels = [value for name, value in inputs.items() if anatomy.is_pixels(name, value)]
        if not self._digests or not pixels:
            return None
        parts = pixel_parts.split_pixels(inputs)
        sequence = tuple(map(pixel_parts.digest_part, parts))
        with self._lock:
            if any(digest in self._digests for digest in sequence):
                return self._find_sequence(sequence, pixels)
        if any(map(pixel_parts.has_eight_bits, parts)):
            return _missing(EIGHT_BITS)
        return _missing(CHANGED) if any(value in self._owners for value in pixels) else None

    def _find_sequence(self, sequence: tuple[bytes, ...], pixels: Sequence[torch.Tensor]) -> Pictures:
        """Return the pictures behind parts of which at least one is known."""
        all_parts = _digest_sequence(sequence)
        batches = [place.batch for place in self._live_places(all_parts)]
        carried = [batch for batch in batches if all(self._owners.get(value) is batch for value in pixels)]
        if not batches:
            return self._combine(sequence)
        if not carried and self._is_ambiguous(all_parts, *(sequence if batches[-1].each else ())):
            return _missing(AMBIGUOUS)
        batch = (carried or batches)[-1]
        self._carry(pixels, batch)
        return batch.pictures

    def _combine(self, sequence: tuple[bytes, ...]) -> Pictures:
        """Return the pictures behind rows of one or several batches."""
        places = [list(self._live_places(digest)) for digest in sequence]
        if not all(places):
            return _missing(FORGOTTEN if all(digest in self._digests for digest in sequence) else MIXED)
        parts = tuple(candidates[-1] for candidates in places)
        if not all(self._digests[digest].each for digest in sequence):
            reasons = {part.batch.pictures.missing for part in parts} - {""}
            return _missing(min(reasons, default=CUT))
        if self._is_ambiguous(*sequence):
            return _missing(AMBIGUOUS)
        pictures = tuple(part.batch.pictures.pictures[part.index] for part in parts)
        options = tuple(part.batch.pictures.options[part.index] for part in parts)
        return Pictures(pictures, CombinedProcess(parts), options=options)

    def _is_ambiguous(self, *digests: bytes) -> bool:
        """Whether different pictures have given a digest, be they remembered or not."""
        return any(self._digests[digest].fingerprint == AMBIGUOUS for digest in digests)

    def _add_sequence(self, sequence: tuple[bytes, ...], batch: RememberedBatch) -> None:
        """Remember the digests of a batch's parts, and of all of them together."""
        for index, digest in enumerate(sequence):
            self._add_digest(digest, batch.fingerprints[index] if batch.each else None, batch, index)
        self._add_digest(_digest_sequence(sequence), " ".join(batch.fingerprints), batch, 0)

    def _add_digest(self, digest: bytes, fingerprint: str | None, batch: RememberedBatch, index: int) -> None:
        record = self._digests.pop(digest, None) or KnownDigest()
        record.add(fingerprint, batch, index)
        self._digests[digest] = record

    def _live_places(self, digest: bytes) -> Iterator[RememberedPart]:
        record = self._digests.get(digest)
        for reference, index in record.places if record is not None else ():
            if (batch := reference()) is not None:
                yield RememberedPart(batch, index)

    def _carry(self, pixels: Iterable[torch.Tensor], batch: RememberedBatch) -> None:
        """Let pixels keep the pictures behind them."""
        for value in pixels:
            self._owners[value] = batch

    def _keep(self, batch: RememberedBatch) -> None:
        """Remember a batch beyond its own life, and let the oldest go."""
        self._last.append(batch)
        self._size += batch.size
        while len(self._last) > REMEMBERED_BATCHES or (self._size > REMEMBERED_BYTES and len(self._last) > 1):
            self._size -= self._last.popleft().size

    def _forget_digests(self) -> None:
        """Drop the oldest digests of batches that are gone, where there are very many."""
        if len(self._digests) <= 2 * KNOWN_DIGESTS:
            return
        unused = [digest for digest in self._digests if not any(self._live_places(digest))]
        for digest in unused[: max(len(unused) - KNOWN_DIGESTS, 0)]:
            del self._digests[digest]


@dataclass(frozen=True)
class CombinedProcess:
    """Processes pictures of rows that come from several batches, each in its own batch.

    Args:
        parts: Where each picture's pixels lie.
    """

    parts: tuple[RememberedPart, ...]

    def __call__(self, pictures: Sequence[Any]) -> PixelPart:
        """Return the pixel inputs of pictures, in the order of the parts."""
        results: dict[int, PixelPart] = {}
        for places in self._rounds():
            batch = self.parts[places[0]].batch
            images = list(batch.pictures.pictures)
            for place in places:
                images[self.parts[place].index] = pictures[place]
            processed = pixel_parts.split_pixels(batch.pictures.process(images))
            results |= {place: processed[self.parts[place].index] for place in places}
        return pixel_parts.join_parts([results[place] for place in range(len(self.parts))])

    def _rounds(self) -> list[list[int]]:
        """Return places that can be processed together: of one batch, and no part of it twice."""
        rounds: dict[tuple[int, int], list[int]] = {}
        repeats: dict[tuple[int, int], int] = {}
        for place, part in enumerate(self.parts):
            key = (id(part.batch), part.index)
            repeats[key] = repeats.get(key, -1) + 1
            rounds.setdefault((key[0], repeats[key]), []).append(place)
        return list(rounds.values())


def _digest_sequence(sequence: tuple[bytes, ...]) -> bytes:
    """Return the digest of all parts of a batch together."""
    return hashlib.sha256(b"".join(sequence) + b"whole").digest()


def _missing(reason: str) -> Pictures:
    return Pictures((), dict, missing=reason)


RECENT_PICTURES = RecentPictures()
"""The memory of this process: inputs of one guard are known to all."""
