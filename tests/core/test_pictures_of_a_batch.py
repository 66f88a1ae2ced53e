"""Inputs are edited as the pictures they were made of, however alike pictures are and whatever becomes of the batch."""

import copy
import functools
import pickle
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gold import SUPPRESSED
from PIL import Image, ImageOps
from toy_processor import toy_processor

from lvlm_guard import Branch, Contrast, Guard, InputError, StrategyRefused, hookimpl
from lvlm_guard.request import recent_pictures
from lvlm_guard.request.recent_pictures import RecentPictures
from lvlm_guard.testing import tiny
from lvlm_guard.testing.processing import TinyProcessor

SETTINGS = {"max_new_tokens": 1, "do_sample": False, "suppress_tokens": SUPPRESSED}
PROCESSORS = {
    "llava": toy_processor,
    "qwen2_vl": lambda: TinyProcessor("qwen2_vl"),
    "llava_onevision": lambda: TinyProcessor("llava_onevision"),
}
SIDES = {"llava": 30, "qwen2_vl": 16, "llava_onevision": 8}


@dataclass(frozen=True)
class Witness:
    """Contrasts with negatives, and writes down which pictures it was shown."""

    neutral: ClassVar[dict[str, Any]] = {}
    shown: list[Any] = field(default_factory=list, hash=False, compare=False, repr=False)

    @hookimpl
    def branches(self, gen):
        return [Branch("witness", picture=self._look)]

    @hookimpl
    def terms(self, gen):
        return [Contrast("witness", 1.0)]

    def _look(self, picture, generator):
        self.shown.append(np.asarray(picture).copy())
        return ImageOps.invert(picture)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Give every test a memory of its own."""
    fresh = RecentPictures()
    monkeypatch.setattr("lvlm_guard.guard.RECENT_PICTURES", fresh)
    return fresh


@pytest.fixture(params=PROCESSORS)
def guard(request, memory):
    return build(request.param)


@functools.cache
def model_of(name):
    return tiny(name)[0]


def build(name):
    guard = Guard(model_of(name), PROCESSORS[name](), [Witness()])
    guard.side = SIDES[name]
    return guard


def draw(guard, seed=0):
    return np.random.default_rng(seed).integers(1, 255, (guard.side, guard.side, 3), dtype=np.uint8)


def ask(guard, *levels, text="<image> w30 w31"):
    return guard.inputs(images=[Image.fromarray(each) for each in levels], text=[text] * len(levels))


def pictures_of(guard, batch):
    pictures = guard._build_request(dict(batch)).pictures
    return None if pictures is None else pictures.missing or [np.asarray(each) for each in pictures.pictures]


def shown(guard, batch):
    """Return the pictures that an edit of pictures is shown when generating on a batch."""
    witness = guard.stack.strategies[0]
    witness.shown.clear()
    guard.generate(**batch, **SETTINGS)
    return list(witness.shown)


def nudged(levels, seed):
    """Return levels of which one channel of one pixel is one higher."""
    changed = levels.copy()
    place = tuple(np.random.default_rng(seed).integers(0, size) for size in levels.shape)
    changed[place] += 1
    return changed


def test_pictures_that_differ_by_one_level_of_one_pixel_are_told_apart(guard):
    levels = [draw(guard, seed) for seed in range(60)]
    pairs = [(each, nudged(each, seed)) for seed, each in enumerate(levels)]
    batches = [(ask(guard, first), ask(guard, second)) for first, second in pairs]
    for wanted, (first, second) in zip(pairs, batches, strict=True):
        assert np.array_equal(pictures_of(guard, first), [wanted[0]])
        assert np.array_equal(pictures_of(guard, {**second}), [wanted[1]])
    assert np.array_equal(shown(guard, batches[7][1]), [pairs[7][1]])


def test_a_batch_keeps_its_pictures_however_many_come_after_it(guard, monkeypatch):
    monkeypatch.setattr(recent_pictures, "REMEMBERED_BATCHES", 2)
    levels = [draw(guard, seed) for seed in range(40)]
    batches = [ask(guard, each) for each in levels]
    assert np.array_equal(pictures_of(guard, batches[0]), levels[:1])
    assert np.array_equal(pictures_of(guard, batches[1]), levels[1:2])


def test_pictures_of_a_copy_that_are_forgotten_are_an_error(monkeypatch):
    guard = build("llava")
    monkeypatch.setattr(recent_pictures, "REMEMBERED_BATCHES", 2)
    copied = copy.deepcopy(dict(ask(guard, draw(guard))))
    kept = copy.deepcopy(dict(ask(guard, draw(guard, 1))))
    assert np.array_equal(shown(guard, kept), [draw(guard, 1)])
    for seed in range(2, 6):
        ask(guard, draw(guard, seed))
    assert np.array_equal(shown(guard, kept), [draw(guard, 1)]), "a copy that was used carries its pictures"
    with pytest.raises(StrategyRefused, match=r"forgotten.*guard.inputs"):
        guard.generate(**copied, **SETTINGS)
    assert Guard(guard.model, guard.processor, ["pai"]).generate(**copied, **SETTINGS).shape, (
        "nothing asks for pictures"
    )


TWICE = {
    "bfloat16, half": (torch.bfloat16, torch.float16),
    "bfloat16, half and back": (torch.bfloat16, torch.float16, torch.float32),
    "half, bfloat16": (torch.float16, torch.bfloat16),
    "half, bfloat16, half, double": (torch.float16, torch.bfloat16, torch.float16, torch.float64),
}


def cast(batch, dtypes):
    """Return a copy of a batch whose pixels were cast to one dtype after the other."""
    pixels = batch["pixel_values"] * 1.0
    for dtype in dtypes:
        pixels = pixels.to(dtype)
    return {**batch, "pixel_values": pixels}


@pytest.mark.parametrize("back", [(), (torch.bfloat16,), (torch.float32,)], ids=str)
@pytest.mark.parametrize("before", [(), (torch.bfloat16,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_copy_in_eight_bits_is_an_error(before, dtype, back):
    guard = build("llava")
    copied = cast(ask(guard, draw(guard)), (*before, dtype, *back))
    with pytest.raises(StrategyRefused, match=r"eight bits.*guard\.inputs"):
        guard.generate(**copied, **SETTINGS)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pixels_from_elsewhere_of_an_empty_picture_are_recovered(value):
    guard = build("llava")
    ask(guard, draw(guard))
    inputs = tiny("llava")[1]
    assert pictures_of(guard, {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], value)}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: {name: value.clone() for name, value in batch.items()},
        lambda batch: pickle.loads(pickle.dumps(batch)),
        lambda batch: {**batch, "pixel_values": batch["pixel_values"].double()},
        lambda batch: {**batch, "pixel_values": batch["pixel_values"].bfloat16()},
        lambda batch: {**batch, "pixel_values": batch["pixel_values"].half().float()},
        lambda batch: {**batch, "pixel_values": batch["pixel_values"].bfloat16().float()},
        lambda batch: copy.deepcopy(batch).to(torch.bfloat16),
        *(functools.partial(cast, dtypes=dtypes) for dtypes in TWICE.values()),
    ],
    ids=["clone", "pickle", "double", "bfloat16", "half and back", "bfloat16 and back", "to", *TWICE],
)
def test_a_copy_of_a_batch_has_its_pictures(guard, change):
    levels = [draw(guard, 1), draw(guard, 2)]
    assert np.array_equal(pictures_of(guard, change(ask(guard, *levels))), levels)


def rows(guard, batch, order):
    """Return rows of a batch, in some order."""
    index = torch.tensor(order)
    grid = batch.get("image_grid_thw")
    chosen = {name: value[index] for name, value in batch.items() if len(value) == len(batch["input_ids"])}
    if grid is not None:
        parts = batch["pixel_values"].split(grid.prod(-1).tolist())
        chosen["pixel_values"] = torch.cat([parts[row] for row in order])
    return chosen


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [1, 1, 0]])
def test_rows_of_a_batch_have_their_own_pictures(guard, order):
    levels = [draw(guard, seed) for seed in range(3)]
    batch = rows(guard, ask(guard, *levels), order)
    assert np.array_equal(pictures_of(guard, batch), [levels[row] for row in order])
    flipped = [np.fliplr(levels[row]) for row in order]
    got = guard._build_request(batch).pictures.process([Image.fromarray(each) for each in flipped])
    assert torch.equal(got["pixel_values"], ask(guard, *flipped)["pixel_values"])


def test_rows_of_several_batches_together_have_their_pictures(guard):
    levels = [draw(guard, seed) for seed in range(3)]
    first, second = ask(guard, *levels[:2]), ask(guard, levels[2])
    joined = {name: torch.cat([second[name], first[name]]) for name in first}
    assert np.array_equal(pictures_of(guard, joined), [levels[2], levels[0], levels[1]])


def test_rows_from_elsewhere_among_ours_are_an_error():
    guard = build("llava")
    batch = ask(guard, draw(guard))
    joined = {name: torch.cat([value, value]) for name, value in batch.items()}
    joined["pixel_values"][len(batch["pixel_values"]) :] *= 0.5
    with pytest.raises(StrategyRefused, match="some do not"):
        guard.generate(**joined, **SETTINGS)


def test_pixels_that_were_changed_in_place_are_an_error():
    guard = build("llava")
    batch = ask(guard, draw(guard))
    batch["pixel_values"].numpy()[:] *= 0.5
    with pytest.raises(StrategyRefused, match="changed since"):
        guard.generate(**batch, **SETTINGS)


def test_pixels_from_elsewhere_are_recovered_as_ever():
    guard = build("llava")
    ask(guard, draw(guard))
    inputs = tiny("llava")[1]
    assert pictures_of(guard, inputs) is None
    assert len(shown(guard, inputs)) == 1


def test_two_pictures_of_the_same_pixels_are_told_apart_by_their_batch_or_refused():
    guard = build("llava")
    small = draw(guard)
    large = small.repeat(2, 0).repeat(2, 1)
    guard.processor.image_processor.resample = 0
    first, second = ask(guard, small), ask(guard, large)
    assert torch.equal(first["pixel_values"], second["pixel_values"]), "no power: the pixels differ"
    assert shown(guard, first)[0].shape == small.shape
    assert shown(guard, {**second})[0].shape == large.shape
    with pytest.raises(StrategyRefused, match="unclear which"):
        guard.generate(**copy.deepcopy(dict(first)), **SETTINGS)


@pytest.mark.parametrize("kept", ["first", "second", "neither"])
def test_two_pictures_of_the_same_pixels_stay_unclear_when_one_is_forgotten(kept, monkeypatch):
    monkeypatch.setattr(recent_pictures, "REMEMBERED_BATCHES", 2)
    guard = build("llava")
    small = draw(guard)
    guard.processor.image_processor.resample = 0
    batches = {"first": ask(guard, small)}
    copied = copy.deepcopy(dict(batches["first"]))
    if kept != "first":
        del batches["first"]
        for seed in range(1, 4):
            ask(guard, draw(guard, seed))
    batches["second"] = ask(guard, small.repeat(2, 0).repeat(2, 1))
    alive = batches.get(kept)
    del batches
    for seed in range(4, 4 + 3 * (kept != "second")):
        ask(guard, draw(guard, seed))
    assert kept == "neither" or len(shown(guard, alive)) == 1
    with pytest.raises(StrategyRefused, match=r"unclear which|were forgotten"):
        guard.generate(**copied, **SETTINGS)


def test_rows_joined_anew_to_the_pixels_of_a_batch_are_unclear():
    guard = build("llava")
    guard.processor.image_processor.resample = 0
    small, other = draw(guard), draw(guard, 1)
    first, second = ask(guard, small, other), ask(guard, small.repeat(2, 0).repeat(2, 1))
    joined = {name: torch.cat([second[name], first[name][1:]]) for name in first}
    assert torch.equal(joined["pixel_values"], first["pixel_values"]), "no power: the pixels differ"
    with pytest.raises(StrategyRefused, match="unclear which"):
        guard.generate(**joined, **SETTINGS)


def test_a_picture_changed_after_inputs_is_edited_as_it_was():
    guard = build("llava")
    levels = draw(guard)
    picture, array = Image.fromarray(levels), levels.copy()
    batches = [guard.inputs(images=each, text="<image> w30 w31") for each in (picture, array)]
    picture.paste((0, 0, 0), (0, 0, 30, 30))
    array[:] = 0
    for batch in batches:
        assert np.array_equal(pictures_of(guard, batch), [levels])


def test_an_edit_that_draws_on_its_picture_changes_nothing_for_the_next_call():
    guard = build("llava")

    class Painter(Witness):
        def _look(self, picture, generator):
            super()._look(picture, generator)
            picture.paste((0, 0, 0), (0, 0, 4, 4))
            return picture

    painted = Guard(guard.model, guard.processor, [Painter()])
    batch = ask(guard, draw(guard))
    assert np.array_equal(shown(painted, batch), shown(painted, batch))


def test_another_guard_knows_the_pictures_too():
    guard = build("llava")
    batch = ask(guard, draw(guard))
    assert np.array_equal(shown(copy.deepcopy(guard), batch), [draw(guard)])


def test_an_edit_that_returns_no_picture_is_refused():
    class Forger(Witness):
        def _look(self, picture, generator):
            return "no picture"

    guard = build("llava")
    with pytest.raises(InputError, match="must return a PIL picture"):
        Guard(guard.model, guard.processor, [Forger()]).generate(**ask(guard, draw(guard)), **SETTINGS)


def test_threads_that_share_a_guard_keep_their_pictures_apart():
    guard = build("llava")
    base = draw(guard)
    wrong, errors = [], []
    guard.processor.tokenizer.padding_side = "right"

    def work(worker):
        try:
            for turn in range(8):
                levels = nudged(base, 100 * worker + turn)
                texts = ["<image> w30", "<image> w30 w31 w32"]
                batch = guard.inputs(images=[Image.fromarray(levels)] * 2, text=texts)
                if not np.array_equal(pictures_of(guard, batch), [levels] * 2) or bool(batch["input_ids"][0, 0]):
                    wrong.append((worker, turn))
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert not wrong
    assert guard.processor.tokenizer.padding_side == "right"


def test_memory_is_bounded(memory, monkeypatch):
    monkeypatch.setattr(recent_pictures, "REMEMBERED_BYTES", 10 * 30 * 30 * 3)
    monkeypatch.setattr(recent_pictures, "KNOWN_DIGESTS", 80)
    guard = build("llava")
    for seed in range(40):
        ask(guard, draw(guard, seed))
    assert len(memory._last) <= 10
    assert memory._size <= recent_pictures.REMEMBERED_BYTES
    assert len(memory._digests) <= 2 * 80 + 6
    assert len(memory._owners) == 0
