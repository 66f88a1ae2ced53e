"""Frames of a video that stand apart in the prompt: what was written for each of them belongs to the video."""

import pytest

from lvlm_guard.request.fences import Fences
from lvlm_guard.request.video_spans import join_frames
from lvlm_guard.testing.zoo.naming import NamedTokens

TOKENIZER = NamedTokens({"<": 20, "1": 21, "23": 22, ".": 23, " seconds>": 24}, {})
FENCES = Fences(frozenset({2, 3}), frozenset({2}), frozenset({3}), tokenizer=TOKENIZER)
FRAME = [2, 9, 9, 3]
EARLY, LATE = [20, 21, 23, 21, 24], [20, 22, 23, 21, 24]
"""`<1.1 seconds>` and `<23.1 seconds>`."""


def find_frames(ids):
    return [range(start, start + 4) for start in range(len(ids) - 3) if ids[start : start + 4] == FRAME]


def join(*prompts, frames, fences=FENCES):
    return join_frames(prompts, [find_frames(ids) for ids in prompts], frames, fences)


def test_times_before_frames_belong_to_the_video():
    ids = [7, *EARLY, *FRAME, *LATE, *FRAME, 8]
    assert join(ids, frames=[2]) == [[range(1, len(ids) - 1)]]


def test_times_behind_frames_belong_to_the_video_and_fences_round_all_too():
    ids = [7, 2, *FRAME, *EARLY, *FRAME, *LATE, 3, 8]
    assert join(ids, frames=[2]) == [[range(1, len(ids) - 1)]]


def test_two_videos_of_one_prompt_and_a_video_of_another():
    first = [7, *EARLY, *FRAME, *LATE, *FRAME, 8, 6, *EARLY, *FRAME, *LATE, *FRAME]
    second = [*EARLY, *FRAME, *LATE, *FRAME, *LATE, *FRAME]
    assert join(first, second, frames=[2, 2, 3]) == [[range(1, 19), range(21, 39)], [range(27)]]


@pytest.mark.parametrize(
    ("ids", "frames"),
    [
        ([7, *EARLY, *FRAME, 8, *FRAME], [2]),  # text stands between them
        ([7, *FRAME, *LATE, *FRAME, 8], [2]),  # the first has no time
        ([*EARLY, *FRAME, *LATE, *FRAME, *EARLY], [2]),  # one time too many
        ([*EARLY, *FRAME, *LATE, *FRAME], [3]),  # a frame is missing
    ],
)
def test_nobody_guesses(ids, frames):
    assert join(ids, frames=frames) is None


def test_without_a_tokenizer_times_are_no_text():
    assert join([*EARLY, *FRAME, *LATE, *FRAME], frames=[2], fences=Fences()) is None
    assert join([7, *FRAME, *FRAME, 8], frames=[2], fences=Fences()) == [[range(1, 9)]]


def test_frames_of_one_video_do_not_stand_in_two_prompts():
    assert join([7, *FRAME], [8, *FRAME, *FRAME], frames=[2, 1]) is None


@pytest.mark.parametrize("ids", [[7, *EARLY, *FRAME, 8], [7, *FRAME, *EARLY, 8]])
def test_a_time_beside_a_video_in_one_piece_may_be_anybodys(ids):
    assert join(ids, frames=[1]) is None
    assert join(ids, frames=[1], fences=Fences()) is not None
    assert join([7, *FRAME, 8], frames=[1]) == [[range(1, 5)]]


def test_parts_of_unknown_number_are_one_video_where_a_time_stands_between_them():
    assert join([7, *EARLY, *FRAME, *LATE, *FRAME], frames=None) == [[range(1, 19)]]
    assert join([7, *FRAME, 8, *FRAME], frames=None) is None
