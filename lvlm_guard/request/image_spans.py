"""Where each image of a prompt stands: its placeholders, in one run or in several, and what was written for it round them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lvlm_guard.request.expansions import Expansion, cut_before, cut_behind
from lvlm_guard.request.fences import Fences

Group: TypeAlias = "tuple[range, Expansion | None]"
"""From the first to behind the last placeholders of an image, and what was written for it where that holds words."""
WINDOW = 16
"""Tokens that are written between a fence and placeholders at most, such as the size of the image."""


@dataclass(frozen=True)
class PromptImages:
    """The images of one prompt without padding.

    Args:
        spans: The span of each.
        shared: The user's part of tokens beside the spans that hold some of what was written for an image too, by their index.
        unclear: Whether words that a processor writes for images stand there, but not as it writes them.
    """

    spans: list[range]
    shared: Mapping[int, str]
    unclear: bool = False


def find_images(
    ids: Sequence[int],
    placeholders: Collection[int | None],
    fences: Fences,
    expansions: Sequence[Expansion] = (),
    *,
    one_image: bool = False,
) -> PromptImages:
    """Return where each image stands in a prompt without padding: `[start image break image end]` is one.

    Args:
        ids: The prompt.
        placeholders: Ids that stand for parts of an image.
        fences: Tokens that belong to an image without standing for a part of it.
        expansions: What the processor writes for an image in words.
        one_image: Whether the prompt is known to hold one image, however many runs of placeholders it has.
    """
    reads = bool(fences.frames or expansions)
    originals = [fences.join([token]) if reads and token not in placeholders else "" for token in ids]
    groups, unclear = _group_runs(
        ids, originals, _find_runs(ids, placeholders), fences, expansions, one_image=one_image
    )
    tokens, spans = list(originals), list[range]()
    for index, (span, expansion) in enumerate(groups):
        first = spans[-1].stop if spans else 0
        last = groups[index + 1][0].start if index + 1 < len(groups) else len(ids)
        between = (
            frozenset(ids[index] for index in span) - frozenset(placeholders) if expansion is None else frozenset()
        )
        fenced = _widen(ids, span, fences, range(first, last), between)
        frames = fences.frames if expansion is None else ((expansion.before, expansion.after),)
        spans.append(_take_frames(tokens, span, fenced, frames, range(first, last)))
    of_images = frozenset(itertools.chain(*spans))
    changed = (index for index, text in enumerate(tokens) if text != originals[index])
    return PromptImages(spans, {index: tokens[index] for index in changed if index not in of_images}, unclear)


def _group_runs(
    ids: Sequence[int],
    tokens: Sequence[str],
    runs: Sequence[range],
    fences: Fences,
    expansions: Sequence[Expansion],
    *,
    one_image: bool,
) -> tuple[list[Group], bool]:
    """Return which runs are one image, and what was written for it in words; and whether words stand there that were, but unlike it."""
    groups: list[Group] = []
    unclear = False
    while runs:
        text, count, expansion = _match(tokens, groups, runs, expansions)
        run, alone = range(runs[0].start, runs[count - 1].stop), expansion is None
        unclear = unclear or (alone and any(each.stands_in(text) for each in expansions))
        joins = bool(groups) and alone and groups[-1][1] is None
        if joins and (one_image or _belong_together(ids, groups[-1][0], run, fences)):
            groups[-1] = range(groups[-1][0].start, run.stop), None
        else:
            groups.append((run, expansion))
        runs = runs[count:]
    return groups, unclear


def _match(
    tokens: Sequence[str], groups: Sequence[Group], runs: Sequence[range], expansions: Sequence[Expansion]
) -> tuple[str, int, Expansion | None]:
    """Return the text before the first of some runs, how many of them are one image, and what was written for it in words."""
    if not expansions:
        return "", 1, None
    last, written = groups[-1] if groups else (range(0), None)
    edges = [last.stop, *itertools.chain(*((run.start, run.stop) for run in runs)), len(tokens)]
    texts = ["".join(tokens[start:stop]) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    texts[0] = texts[0].removeprefix(written.after if written else "")
    matches = ((each.count_runs(texts), each) for each in expansions)
    count, expansion = max(matches, key=lambda match: match[0])
    return (texts[0], count, expansion) if count else (texts[0], 1, None)


def _take_frames(
    tokens: list[str], image: range, fenced: range, frames: Sequence[tuple[str, str]], bounds: range
) -> range:
    """Return a span with the texts that stand right round its placeholders, where there are any; what is the user's stays in `tokens`.

    Args:
        tokens: The tokens of the prompt as texts; of those with some of both, the user's part is left.
        image: From the first to behind the last of the placeholders.
        fenced: That with its fences.
        frames: Texts before and behind.
        bounds: Where other images end and begin.
    """
    start, stop = fenced.start, fenced.stop
    for before, after in frames:
        left = cut_before(tokens, image.start, before, bounds.start)
        right = cut_behind(tokens, image.stop, after, bounds.stop)
        if left is not None and left.place <= start:
            start = left.place
            if left.shared:
                tokens[start - 1] = left.shared
        if right is not None and right.place >= stop:
            stop = right.place
            if right.shared:
                tokens[stop] = right.shared
    return range(start, stop)


def merge_touching(spans: Sequence[range]) -> list[range]:
    """Return spans with those joined that have nothing between them."""
    merged: list[range] = []
    for span in spans:
        if merged and merged[-1].stop == span.start:
            merged[-1] = range(merged[-1].start, span.stop)
        else:
            merged.append(span)
    return merged


def _find_runs(ids: Sequence[int], placeholders: Collection[int | None]) -> list[range]:
    runs: list[range] = []
    for index, token in enumerate(ids):
        if token not in placeholders:
            continue
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def _belong_together(ids: Sequence[int], span: range, run: range, fences: Fences) -> bool:
    """Whether what stands between a span and the next run was written for one image: it says so, or nothing closed the image."""
    gap = ids[span.stop : run.start]
    if _is_written(gap, fences):
        return True
    opened = bool(fences.closing) and _find_opening(ids, span.start, 0, fences) < span.start
    return opened and not any(token in fences.closing or token in fences.opening for token in gap)


def _is_written(gap: Sequence[int], fences: Fences) -> bool:
    """Whether the tokens between two runs were written for one image, and do not end one and begin another."""
    closed = next((index for index, token in enumerate(gap) if token in fences.closing), len(gap))
    if any(token in fences.opening for token in gap[closed:]):
        return False
    unnamed = [token for token in gap if token not in fences.named]
    marks = [token for token in unnamed if token in fences.special and not fences.is_blank(token)]
    blank = all(fences.is_blank(token) for token in unnamed if token not in marks)
    return blank and len(gap) > len(unnamed) - len(marks)


def _widen(ids: Sequence[int], span: range, fences: Fences, bounds: range, between: frozenset[int]) -> range:
    """Return a span with its fences, within the bounds of the images before and after it; tokens between its parts may be some."""
    belonging = fences.named | between
    start = _widen_left(ids, span.start, bounds.start, fences, belonging)
    opened = any(ids[index] in fences.opening for index in range(start, span.start))
    stop = _find_closing(ids, span.stop, bounds.stop, fences) if opened else span.stop
    while stop < bounds.stop and ids[stop] in belonging and ids[stop] not in fences.opening:
        stop += 1
    return range(start, stop)


def _widen_left(ids: Sequence[int], start: int, first: int, fences: Fences, belonging: frozenset[int]) -> int:
    """Return where what was written before an image begins."""
    start = _find_opening(ids, start, first, fences)
    while start > first:
        token, before = ids[start - 1], ids[start - 2] if start - 1 > first else None
        if token in fences.closing:  # of a label, such as the number of the image
            label = _find_opening(ids, start - 1, first, fences)
            if label == start - 1:
                break
            start = label
        elif token in belonging or (token in fences.special and before in belonging and before not in fences.closing):
            start -= 1
        else:
            break
    return start


def _find_opening(ids: Sequence[int], start: int, first: int, fences: Fences) -> int:
    """Return the place of the nearest opening fence that nothing closes before `start`; `start` where there is none."""
    for index in range(start - 1, max(first, start - WINDOW) - 1, -1):
        if ids[index] in fences.opening:
            return index
        if ids[index] in fences.closing:
            break
    return start


def _find_closing(ids: Sequence[int], stop: int, last: int, fences: Fences) -> int:
    """Return the place behind the nearest closing fence before another image opens; `stop` where there is none."""
    for index in range(stop, min(last, stop + WINDOW)):
        if ids[index] in fences.closing:
            return index + 1
        if ids[index] in fences.opening:
            break
    return stop
