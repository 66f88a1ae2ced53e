"""Where each image of a prompt stands: its placeholders, in one run or in several, and what was written for it round them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lvlm_guard.request.fences import Fences

WINDOW = 16
"""Tokens that are written between a fence and placeholders at most, such as the size of the image."""


def find_image_spans(
    ids: Sequence[int], placeholders: Collection[int | None], fences: Fences, *, one_image: bool = False
) -> list[range]:
    """Return the span of each image in a prompt without padding: `[start image break image end]` is one.

    Args:
        ids: The prompt.
        placeholders: Ids that stand for parts of an image.
        fences: Tokens that belong to an image without standing for a part of it.
        one_image: Whether the prompt is known to hold one image, however many runs of placeholders it has.
    """
    runs = _find_runs(ids, placeholders)
    spans: list[range] = []
    for run in runs:
        if spans and (one_image or _belong_together(ids, spans[-1], run, fences)):
            spans[-1] = range(spans[-1].start, run.stop)
        else:
            spans.append(run)
    widened: list[range] = []
    for index, span in enumerate(spans):
        first = widened[-1].stop if widened else 0
        last = spans[index + 1].start if index + 1 < len(spans) else len(ids)
        widened.append(_widen(ids, span, fences, range(first, last), placeholders))
    return widened


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


def _widen(
    ids: Sequence[int], span: range, fences: Fences, bounds: range, placeholders: Collection[int | None]
) -> range:
    """Return a span with what was written round it, within the bounds of the images before and after it."""
    between = frozenset(ids[index] for index in span) - frozenset(placeholders)
    belonging = fences.named | between
    start = _widen_left(ids, span.start, bounds.start, fences, belonging)
    opened = any(ids[index] in fences.opening for index in range(start, span.start))
    stop = _find_closing(ids, span.stop, bounds.stop, fences) if opened else span.stop
    while stop < bounds.stop and ids[stop] in belonging and ids[stop] not in fences.opening:
        stop += 1
    for before, after in fences.frames:
        if tuple(ids[max(span.start - len(before), bounds.start) : span.start]) == before:
            start = min(start, span.start - len(before))
        if tuple(ids[span.stop : min(span.stop + len(after), bounds.stop)]) == after:
            stop = max(stop, span.stop + len(after))
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
