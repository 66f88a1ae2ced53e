"""Where each video of a prompt stands: its frames, together or each by itself, and the times that were written for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from lvlm_guard.request.fences import Fences

LONGEST_TIME = 16
"""Tokens of a time at most."""
_TIME = r"<?(\d+:\d+(:\d+)?(\.\d+)?|\d+(\.\d+)?\s*s(ec(onds?)?)?)>?\s*"
_TIME_BEFORE, _TIME_BEHIND = re.compile(_TIME + "$"), re.compile(r"\s*" + _TIME + r"(\W|$)")
_NUMBER = re.compile(r"\d+")


def join_frames(
    prompts: Sequence[Sequence[int]], spans: Sequence[Sequence[range]], frames: Sequence[int] | None, fences: Fences
) -> list[list[range]] | None:
    """Return the span of each video, times included, in prompts without padding; None where nothing tells what belongs to it.

    Args:
        prompts: The prompts.
        spans: What stands apart of videos, in each prompt.
        frames: Frames of each video, in order; None where that is unknown: then what stands in one prompt is taken for one
            video, if a time stands between any two parts of it.
        fences: Tokens that belong to videos, and the tokenizer.
    """
    parts = sum(map(len, spans))
    frames = [len(row) for row in spans if row] if frames is None else frames
    if parts == len(frames):
        timed = any(_reads_time(ids, span, fences) for ids, row in zip(prompts, spans, strict=True) for span in row)
        return None if timed else [list(row) for row in spans]
    if parts != sum(frames):
        return None
    supply = iter(frames)
    joined: list[list[range]] = []
    for ids, row in zip(prompts, spans, strict=True):
        videos = [(count, list(part)) for count, part in _split_videos(row, supply)]
        whole_videos = [_join_video(ids, part, fences) for count, part in videos if len(part) == count]
        if None in whole_videos or len(whole_videos) < len(videos):
            return None
        joined.append([span for span in whole_videos if span is not None])
    return joined


def _split_videos(row: Sequence[range], supply: Iterator[int]) -> Iterator[tuple[int, Sequence[range]]]:
    """Yield how many frames each video of a prompt has, and where they stand."""
    start = 0
    while start < len(row):
        count = next(supply, 0) or len(row)
        yield count, row[start : start + count]
        start += count


def _join_video(ids: Sequence[int], video: Sequence[range], fences: Fences) -> range | None:
    """Return the span of one video; None where it is unknown what was written for each of its frames."""
    gaps = [list(ids[left.stop : right.start]) for left, right in itertools.pairwise(video)]
    start, stop = video[0].start, video[-1].stop
    if any(gaps):
        time = _read_time(gaps[0], fences)
        if time is None or any(_read_time(gap, fences) != time for gap in gaps):
            return None
        before = _measure_time(list(reversed(ids[max(start - LONGEST_TIME, 0) : start])), time, fences, backwards=True)
        after = _measure_time(ids[stop : stop + LONGEST_TIME], time, fences)
        if bool(before) == bool(after):  # a time stands before each frame, or behind each
            return None
        start, stop = start - before, stop + after
    while stop < len(ids) and ids[stop] in fences.closing:
        stop += 1
    while start > 0 and ids[start - 1] in fences.opening:
        start -= 1
    return range(start, stop)


def _read_time(tokens: Sequence[int], fences: Fences) -> str | None:
    """Return the text of tokens with every number replaced, None without a tokenizer."""
    if not hasattr(fences.tokenizer, "decode"):
        return None
    return _NUMBER.sub("0", fences.tokenizer.decode(list(tokens))).strip()


def _reads_time(ids: Sequence[int], span: range, fences: Fences) -> bool:
    """Whether a time stands before a video or behind it, which may be the user's or written for the video."""
    if not hasattr(fences.tokenizer, "decode"):
        return False
    before, after = ids[max(span.start - LONGEST_TIME, 0) : span.start], ids[span.stop : span.stop + LONGEST_TIME]
    texts = [fences.tokenizer.decode(list(tokens)) for tokens in (before, after)]
    return bool(_TIME_BEFORE.search(texts[0]) or _TIME_BEHIND.match(texts[1]))


def _measure_time(tokens: Sequence[int], time: str, fences: Fences, *, backwards: bool = False) -> int:
    """Return how many of the first tokens are a time, the most that are one; 0 where none is. They may come last first."""
    for length in range(len(tokens), 0, -1):
        some = list(tokens[:length])
        if _read_time(some[::-1] if backwards else some, fences) == time:
            return length
    return 0
