"""Branches the model chooses itself (SID, AvisC) and RITUAL's transformed picture, each against its formula by hand."""

import math
import statistics

import against_twin
import numpy as np
import pytest
import torch
from against_twin import ARCHITECTURES, check
from gold import OLD
from lvlm_guard_contrastive import RITUAL, SID, AvisC
from lvlm_guard_contrastive.ritual import EVERY, TRANSFORMS, turn_hue
from PIL import Image
from twin import Twin

from lvlm_guard import Guard, ModelRefused, StackError, StrategyRefused
from lvlm_guard.request.requests import Pictures
from lvlm_guard.testing import StrategyContract, tiny
from lvlm_guard.testing.contract import Words


def plausible(main, combined, beta):
    return torch.where(main >= main.max() + math.log(beta), combined, main - 1e4)


def least_attended(model, inputs, prefix, kept, first=1):
    def cut(layer, scores):
        if layer < first:
            return scores
        scores = scores.clone()
        seen = twin.seen[first - 1].mean(1)[0]
        spots = twin.image.nonzero().flatten().tolist()
        for query in range(scores.shape[2]):
            chooser = seen[max(query, twin.prompt - 1)].tolist()
            ranked = sorted(spots, key=lambda spot: chooser[spot])
            scores[:, :, query, ranked[max(1, round(kept * len(spots))) :]] = -1e30
        return scores

    twin = Twin(model, scores=cut)
    return twin.next(inputs, prefix)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("layer", "kept", "beta"), [(2 / 32, 100 / 576, 0.1), (0.67, 0.5, 0.02)])
def test_sid(architecture, layer, kept, beta):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        branch = least_attended(model, inputs, prefix, kept, first=2 if layer > 0.5 else 1)
        return plausible(main, 1.8 * main - 0.8 * branch, beta), main

    check([SID(alpha=0.8, beta=beta, layer=layer, kept=kept)], gold, architecture)


def test_sid_settles_equal_scores_by_position():
    class Now:
        keys = torch.tensor([[False, True, True, True, True, False]])

    unseen = SID(kept=0.5)._unseen(torch.full((1, 2, 3, 6), 1 / 6), Now())
    assert unseen.tolist() == [[[False, False, False, True, True, False]] * 3]


def test_sid_counts_each_rows_own_image_tokens():
    class Now:
        keys = torch.tensor([[True] * 10, [True] * 4 + [False] * 6, [False] * 10])

    unseen = SID(kept=0.3)._unseen(torch.rand(3, 2, 1, 10, generator=torch.Generator().manual_seed(0)), Now())
    assert (Now.keys[:, None] & ~unseen).sum(-1).flatten().tolist() == [3, 1, 0]


def stared_at(model, inputs, gamma, lam):
    """Positions of image tokens that are not blind, by lists and sums."""
    twin = Twin(model)
    twin.run(inputs)
    spots = twin.image.nonzero().flatten().tolist()
    rows = [twin.seen[layer][0].mean(0)[twin.prompt - 1, spots].tolist() for layer in range(twin.depth)]
    total = sum(map(sum, rows))
    ordered = sorted(rows, key=sum, reverse=True)
    shares = np.cumsum([sum(row) / total for row in ordered])
    chosen = ordered[: int((shares < gamma).sum()) + 1]
    weights = [statistics.mean(column) for column in zip(*chosen, strict=True)]
    bound = statistics.mean(weights) + lam * statistics.stdev(weights)
    return [spot for spot, weight in zip(spots, weights, strict=True) if weight < bound]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("gamma", "lam"), [(0.5, 1.0), (0.9, 0.2)])
def test_avisc(architecture, gamma, lam):
    blanked = []

    def gold(model, inputs, prefix):
        def blind(hidden):
            hidden = hidden.clone()
            hidden[:, gone] = 0.0
            return hidden

        gone = stared_at(model, inputs, gamma, lam)
        blanked.append(len(gone) / int((inputs["input_ids"] == 100).sum()))
        main = Twin(model).next(inputs, prefix)
        return plausible(main, 2.2 * main - 1.2 * Twin(model, embedding=blind).next(inputs, prefix), 0.05), main

    check([AvisC(alpha=1.2, beta=0.05, gamma=gamma, lam=lam)], gold, architecture)
    assert min(blanked) > 0, "no image token went anywhere"
    assert OLD or max(blanked) < 1, "every image token went somewhere"  # versions draw other random weights


def test_avisc_leaves_a_row_without_image_alone():
    image = torch.tensor([[True, True, True, False], [False] * 4])
    attention = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) * image[:, None]
    gone = AvisC(lam=0.0)._select_seeing(attention, image)
    assert 0 < int(gone[0].sum()) < 3
    assert not gone[1].any()


def flipped(picture):
    return np.asarray(picture)[:, ::-1]


class Colours(Words):
    """A processor that tells how its pixels were normalised."""

    image_mean = (0.5, 0.4, 0.6)
    image_std = (0.3, 0.2, 0.25)


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_ritual_on_recovered_pictures(architecture, monkeypatch):
    mean, deviation = (torch.tensor(one).view(-1, 1, 1) for one in (Colours.image_mean, Colours.image_std))

    def gold(model, inputs, prefix):
        shown = ((inputs["pixel_values"] * deviation + mean).clamp(0, 1) * 255).round().flip(-1) / 255
        main = Twin(model).next(inputs, prefix)
        added = Twin(model).next({**inputs, "pixel_values": (shown - mean) / deviation}, prefix)
        return plausible(main, main + 1.5 * added, 0.1), main

    monkeypatch.setattr(against_twin, "Words", Colours)
    check([RITUAL(kappa=1.5, transforms=("flip",))], gold, architecture)


def packed(pictures):
    """Pixels of 16 x 16 pictures as 16 rows of numbers; any order does, as long as both sides use it."""
    arrays = [torch.from_numpy(np.asarray(one).copy()).float().reshape(16, 48).repeat(1, 2) for one in pictures]
    return {"pixel_values": torch.cat(arrays) / 127.5 - 1}


def noise(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8))


def test_ritual_on_remembered_pictures(monkeypatch):
    lengths = {3: 0, 6: 1, 11: 2}  # of the text, by which a row's picture is known
    pictures = [noise(row) for row in range(3)]

    def guard(model, processor, strategies, executor):
        made = Guard(model, processor, strategies, executor=executor)
        made._memory.find = lambda inputs: Pictures(tuple(pictures), packed)
        return made

    def gold(model, inputs, prefix):
        picture = pictures[lengths[int((inputs["input_ids"] < 98).sum()) - 2]]
        turned_round = packed([Image.fromarray(flipped(picture))])
        main = Twin(model).next(inputs, prefix)
        return plausible(main, main + 3 * Twin(model).next({**inputs, **turned_round}, prefix), 0.1), main

    monkeypatch.setattr(against_twin, "Guard", guard)
    check([RITUAL(transforms=("flip",))], gold, "qwen2_vl")


@pytest.mark.parametrize("transform", EVERY)
def test_transforms_keep_the_size_and_draw_from_their_generator_alone(transform):
    picture = noise(3, size=(40, 24))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [
        RITUAL(transforms=(transform,))._transform(picture, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(one.size == picture.size and one.mode == "RGB" for one in drawn)
    assert drawn[0].tobytes() == drawn[1].tobytes() != picture.tobytes()
    assert (drawn[0].tobytes() == drawn[2].tobytes()) == (transform in ("flip", "flop"))


def test_transforms_do_what_they_are_called():
    picture = noise(4, size=(40, 24))
    pixels, generator = np.asarray(picture), torch.Generator().manual_seed(0)
    assert np.array_equal(TRANSFORMS["flip"](picture, generator), pixels[:, ::-1])
    assert np.array_equal(TRANSFORMS["flop"](picture, generator), pixels[::-1])
    assert np.asarray(TRANSFORMS["blur"](picture, generator)).std() < 0.5 * pixels.std()
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert turn_hue(red, 1 / 3).getpixel((0, 0)) == (0, 255, 0)
    assert turn_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)


def test_a_crop_shows_a_window_of_the_published_sizes():
    ramp = np.broadcast_to(np.linspace(0, 250, 100)[None], (100, 100))
    picture = Image.fromarray(np.stack([ramp, ramp.T, ramp * 0], -1).astype(np.uint8))
    for seed in range(50):
        shown = np.asarray(TRANSFORMS["crop"](picture, torch.Generator().manual_seed(seed))).astype(float)
        width, height = ((shown[..., side].max() - shown[..., side].min()) / 250 for side in (0, 1))
        assert 0.06 <= width * height <= 1
        assert width > 0.99 or height > 0.99 or 0.7 <= width / height <= 1.42


def test_every_transform_is_drawn_as_often():
    picture, drawn = noise(5, size=(4, 4)), []
    shown = {name: name for name in EVERY}
    with pytest.MonkeyPatch.context() as patch:
        for name in EVERY:
            patch.setitem(TRANSFORMS, name, lambda _, generator, name=name: drawn.append(shown[name]))
        for seed in range(600):
            RITUAL()._transform(picture, torch.Generator().manual_seed(seed))
    assert all(70 <= drawn.count(name) <= 130 for name in EVERY)


@pytest.mark.parametrize("strategy", [SID(kept=0.5), AvisC(lam=0.2)])
def test_candidates_of_prompt_lookup_do_not_move_the_choice(strategy):
    model, inputs = tiny("llava")
    inputs = {**inputs, "input_ids": inputs["input_ids"].clone()}
    inputs["input_ids"][:, -6:] = inputs["input_ids"][:, -6:-3].repeat(1, 2)  # a prompt that repeats itself
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1, "eos_token_id": 104}
    guard = Guard(model, None, [strategy])
    greedy, looked = (guard.generate(**inputs, **settings, **more) for more in ({"eos_token_id": 104}, lookup))
    assert torch.equal(greedy.sequences, looked.sequences)
    for one, other in zip(greedy.logits, looked.logits, strict=False):
        assert float((one - other).abs().max()) <= 1e-4


@pytest.mark.parametrize("make", [
    lambda: SID(kept=0.0), lambda: SID(kept=1.0), lambda: SID(layer=1.0), lambda: SID(alpha=-1.0),
    lambda: AvisC(gamma=0.0), lambda: AvisC(lam=math.nan), lambda: RITUAL(kappa=math.inf),
    lambda: RITUAL(transforms=()), lambda: RITUAL(transforms=("shear",)),
])  # fmt: skip
def test_settings_out_of_range_are_named(make):
    model, _ = tiny("llava")
    with pytest.raises(StackError, match=r"(kept|layer|alpha|gamma|lam|kappa|transforms).*: "):
        Guard(model, None, [make()])


@pytest.mark.parametrize("strategy", [SID(), AvisC()])
@pytest.mark.parametrize("architecture", ["llava", "mllama"])
def test_a_prompt_with_nothing_to_choose_from_is_refused(strategy, architecture):
    model, inputs = tiny(architecture)
    if architecture == "llava":
        inputs = {name: inputs[name][:, -6:] for name in ("input_ids", "attention_mask")}
    with pytest.raises(StrategyRefused, match="image tokens"):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("strategy", [SID(), AvisC()])
def test_a_hybrid_decoder_without_the_attention_is_refused_by_name(strategy):
    try:
        model, inputs = tiny("qwen3_5")
    except KeyError:
        pytest.skip("this version of transformers has no qwen3_5")
    with pytest.raises(ModelRefused, match="no attention"):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2)


class TestSID(StrategyContract):
    strategy = SID()


class TestAvisC(StrategyContract):
    strategy = AvisC()


class TestRITUAL(StrategyContract):
    strategy = RITUAL()
    architectures = ("llava", "gemma3")  # packed patches need remembered pictures, see above

    def guard(self, model, *strategies, **options):
        return Guard(model, Colours(), list(strategies), **options)
