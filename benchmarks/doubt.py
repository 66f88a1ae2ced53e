"""How well a doubt tells invented words from others: `python benchmarks/doubt.py --out results`.

The bundled model describes held-out scenes, half of which break a habit. Every word about the picture is true or not, by what the
scene holds: an object that is not there, or a colour that an object there has not. Colours of objects that are not there do not
count. Each score is judged by its AUROC, with intervals that resample pictures; the default doubt is compared with the others in
the same resamples. Maps of occlusion are judged by deletion and insertion against random orders, and by what becomes of them as
weights are shuffled. Cost is processor time, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from measuring import machine, table, write_at_once
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from lvlm_guard import AttentionCapture, Branch, Generation, Guard, Revision, View, anatomy, hookimpl
from lvlm_guard.diagnosis.answer import occlusion
from lvlm_guard.diagnosis.answer.forcing import AnswerRequest
from lvlm_guard.loading import load
from lvlm_guard.testbed.world.language import DESCRIBE
from lvlm_guard.testbed.world.scenes import Scene, scenes

Floats = NDArray[np.float64]
PROMPT, TOKENS, SEED = DESCRIBE[0], 44, 7
RESAMPLES, BINS, CELLS, STEP = 1000, 10, 6, 4
BATCH = 30
"""Captions of a call."""
SCORES: Mapping[str, Callable[[Mapping[str, Any], Sequence[float]], float]] = {
    "doubt": lambda word, _: word["doubt"],
    "entropy": lambda word, _: word["entropy"],
    "max probability": lambda word, _: -word["max_probability"],
    "image-free log-ratio": lambda _, kept: kept[1] - kept[0],
    "image attention": lambda _, kept: -kept[2],
}
"""What each score says of a word of `doubt` and of what `TokenRecorder` kept of its token; higher is more doubtful."""
IMAGE_FREE = Branch.without_image()
ATTENTION = "attention"


@dataclass(frozen=True, eq=False)
class TokenRecorder:
    """Keep of each greedy token its log-probability, that without the image, and the attention on the image; nothing is changed.

    Args:
        columns: Receives `[rows, 3]` for each token.
    """

    observes: ClassVar[bool] = True
    asks: ClassVar[bool] = False

    columns: Any

    @hookimpl
    def branches(self, gen: Generation) -> Iterator[Branch]:  # noqa: ARG002 - the hook's signature
        """Run the same prompts without their images."""
        yield IMAGE_FREE

    @hookimpl
    def attention(self, gen: Generation) -> Iterator[AttentionCapture]:  # noqa: ARG002 - as above
        """Look at the attention to the image."""
        yield AttentionCapture(ATTENTION, (0.0, 1.0), sum_image, depends_on_end=False)

    @hookimpl
    def observe(self, gen: Generation) -> None:
        """Keep a column `[rows, 3]`."""
        logs, free = (gen.logits(source)[:, -1].float().log_softmax(-1) for source in ("main", IMAGE_FREE))
        best = logs.argmax(-1, keepdim=True)
        masses = [values[:, :, -1].mean(1) for (key, _), values in gen.observations.items() if key == ATTENTION]
        attention = torch.stack(masses).mean(0)
        self.columns.append(torch.stack([logs.gather(1, best)[:, 0], free.gather(1, best)[:, 0], attention], dim=1))

    @hookimpl
    def finish(self, gen: Generation) -> Iterator[Revision]:  # noqa: ARG002 - as above
        """Revise nothing: strategies that finish are left out where `doubt` asks its questions, and so is this one."""
        return iter(())


def sum_image(probabilities: Tensor, view: View) -> Tensor:
    """Return the share of attention on the image `[rows, heads, predicting]`."""
    return (probabilities * view.keys[:, None, None]).sum(-1)


@dataclass(frozen=True)
class DescribedScene:
    """A scene, and what was said of it.

    Args:
        scene: The scene.
        text: The caption.
        words: As `doubt` leaves them in a report.
        tokens: What was kept of each token `[tokens, 3]`.
    """

    scene: Scene
    text: str
    words: Sequence[Mapping[str, Any]]
    tokens: Sequence[Sequence[float]]


@dataclass(frozen=True)
class JudgedWord:
    """A word with its truth.

    Args:
        picture: The number of its picture.
        level: `object` or `attribute`.
        is_wrong: Whether the scene contradicts it.
        scores: By name.
    """

    picture: int
    level: str
    is_wrong: bool
    scores: Mapping[str, float]


def judge(number: int, described: DescribedScene) -> Iterator[JudgedWord]:
    """Yield the words of a caption that the scene says true or false of."""
    for word in described.words:
        subject = (word["claim"] or [""])[0]
        if word["level"] == "object":
            is_wrong = word["text"] not in described.scene.present
        elif word["level"] == "attribute" and (thing := described.scene.find(subject)) is not None:
            is_wrong = thing.colour != word["text"]
        else:
            continue
        scores = {name: score(word, described.tokens[word["first_token"]]) for name, score in SCORES.items()}
        yield JudgedWord(number, word["level"], is_wrong, scores)


def compute_auroc(scores: Floats, wrong: NDArray[np.bool_], weights: Floats) -> float:
    """Return the chance that a wrong word scores above a true one, ties as a half; words count by their weights."""
    order = np.argsort(scores, kind="stable")
    levels, lies = scores[order], wrong[order]
    low, high = weights[order] * ~lies, weights[order] * lies
    _, starts = np.unique(levels, return_index=True)
    below_sums, high_sums = np.add.reduceat(low, starts), np.add.reduceat(high, starts)
    below = np.cumsum(below_sums) - below_sums / 2
    total = low.sum() * high.sum()
    return float((high_sums * below).sum() / total) if total else float("nan")


def resample(words: Sequence[JudgedWord]) -> dict[str, Floats]:
    """Return AUROCs by score: of all words first, then of each resample of pictures."""
    wrong = np.array([word.is_wrong for word in words])
    _, picture = np.unique([word.picture for word in words], return_inverse=True)
    rng = np.random.default_rng(SEED)
    count = int(picture.max()) + 1
    draws = [np.ones(count), *(np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))]
    values = {name: np.array([word.scores[name] for word in words]) for name in SCORES}
    return {
        name: np.array([compute_auroc(score, wrong, weights[picture].astype(float)) for weights in draws])
        for name, score in values.items()
    }


def bound(values: Floats) -> dict[str, float]:
    """Return the first value, and the bounds of 95 % of the others."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def compare(words: Sequence[JudgedWord], group: str) -> list[dict[str, Any]]:
    """Return a row for each score: its AUROC, and how far the default doubt lies above it."""
    if len({word.is_wrong for word in words}) < 2:
        return []
    aurocs = resample(words)
    about = {
        "words of": group,
        "words": len(words),
        "wrong": sum(word.is_wrong for word in words),
        "pictures": len({word.picture for word in words}),
    }
    return [
        {
            **about,
            "score": name,
            **{f"auroc {key}": value for key, value in bound(values).items()},
            **{f"doubt minus it {key}": value for key, value in bound(aurocs["doubt"] - values).items()},
        }
        for name, values in aurocs.items()
    ]


def check_reliability(words: Sequence[JudgedWord]) -> tuple[list[dict[str, Any]], float]:
    """Return by bins of doubt the mean doubt and the share of wrong words, and their mean distance over words."""
    doubts = np.array([word.scores["doubt"] for word in words])
    wrong = np.array([word.is_wrong for word in words], dtype=float)
    places = np.minimum((doubts * BINS).astype(int), BINS - 1)
    rows = [
        {
            "doubt from": number / BINS,
            "to": (number + 1) / BINS,
            "words": int((places == number).sum()),
            "mean doubt": float(doubts[places == number].mean()),
            "share wrong": float(wrong[places == number].mean()),
        }
        for number in range(BINS)
        if (places == number).any()
    ]
    error = sum(row["words"] * abs(row["mean doubt"] - row["share wrong"]) for row in rows) / len(words)
    return rows, float(error)


def describe(guard: Guard, drawn: Sequence[Scene]) -> list[DescribedScene]:
    """Return greedy captions of scenes, with what is known of their words."""
    described = []
    for start in tqdm(range(0, len(drawn), BATCH), "captions"):
        part, columns = drawn[start : start + BATCH], list[Tensor]()
        observing = guard.using([{"name": "doubt", "params": {"ask": True}}, TokenRecorder(columns)])
        batch = observing.inputs(images=[scene.picture for scene in part], messages=[write_prompt() for _ in part])
        observing.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
        tokens = torch.stack(columns, dim=1).tolist()
        rows = observing.report.results["doubt"]
        described += [
            DescribedScene(scene, row["text"], row["words"], kept)
            for scene, row, kept in zip(part, rows, tokens, strict=True)
        ]
    return described


def write_prompt() -> list[dict[str, Any]]:
    """Return the conversation that asks for a caption."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]


def cover(picture: Image.Image, cells: Sequence[int], *, keeps: bool) -> Image.Image:
    """Return a picture with some cells in its mean colour, or all others."""
    levels = np.asarray(picture)
    colour = levels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    edited = np.broadcast_to(colour, levels.shape).copy() if keeps else levels.copy()
    rows, columns = (occlusion.cut_side(levels.shape[side], CELLS) for side in (0, 1))
    for cell in cells:
        (top, bottom), (left, right) = rows[cell // CELLS], columns[cell % CELLS]
        edited[top:bottom, left:right] = levels[top:bottom, left:right] if keeps else colour
    return Image.fromarray(edited)


def trace(
    request: AnswerRequest, ids: Sequence[int], span: tuple[int, int], order: Sequence[int], *, keeps: bool
) -> float:
    """Return the area under the probability of a word, as a share of that on the picture, as cells are covered or shown in an order."""
    picture = request.pictures[0]
    edits = [cover(picture, order[:number], keeps=keeps) for number in range(0, CELLS * CELLS + 1, STEP)]
    logs = torch.cat(
        [
            occlusion.compute_log_probabilities(request, [picture, *edits[start : start + 11]], ids[: span[1]])[
                :, span[0] :
            ].sum(1)
            for start in range(0, len(edits), 11)
        ]
    )
    chances = logs.exp()
    shares = chances[1:] / chances[0]
    return float(np.trapezoid(shares.tolist(), dx=1 / (len(shares) - 1)))


def map_word(request: AnswerRequest, ids: Sequence[int], span: tuple[int, int]) -> Tensor:
    """Return the occlusion map of one word `[cells]`."""
    return occlusion.occlude(request, ids, [span], CELLS, iter)[0]


def choose_objects(described: Sequence[DescribedScene], count: int) -> list[tuple[DescribedScene, Mapping[str, Any]]]:
    """Return the first object of each caption that is in its picture, one a picture."""
    chosen = []
    for each in described:
        words = [word for word in each.words if word["level"] == "object" and word["text"] in each.scene.present]
        chosen += [(each, words[0])] if words else []
    return chosen[:: max(len(chosen) // max(count, 1), 1)][:count]


def judge_maps(guard: Guard, described: Sequence[DescribedScene], count: int) -> list[dict[str, Any]]:
    """Return rows about occlusion maps: deletion, insertion, and rank correlation with maps of models whose weights are shuffled."""
    rng = np.random.default_rng(SEED)
    shuffled = {name: Guard(shuffle(guard.model, share), guard.processor, None) for name, share in SHARES.items()}
    figures: dict[str, list[float]] = {}
    for each, word in tqdm(choose_objects(described, count), "maps"):
        request = AnswerRequest(guard, (each.scene.picture,), PROMPT)
        ids = list(request.tokenizer(each.text, add_special_tokens=False)["input_ids"])
        span = (word["first_token"], word["first_token"] + word["tokens"])
        map_ = map_word(request, ids, span)
        by_map, by_chance = map_.argsort(descending=True).tolist(), rng.permutation(CELLS * CELLS).tolist()
        for name, keeps in (("deletion", False), ("insertion", True)):
            for way, order in (("by the map", by_map), ("in a random order", by_chance)):
                figures.setdefault(f"{name} {way}", []).append(trace(request, ids, span, order, keeps=keeps))
        for name, other_guard in shuffled.items():
            other_map = map_word(AnswerRequest(other_guard, request.pictures, PROMPT), ids, span)
            figures.setdefault(f"rank correlation, {name}", []).append(
                float(stats.spearmanr(map_, other_map).statistic)
            )
    for name in ("deletion", "insertion"):
        pairs_of = zip(figures[f"{name} by the map"], figures[f"{name} in a random order"], strict=True)
        figures[f"{name}, map minus random"] = [left - right for left, right in pairs_of]
    return [{"figure": name, "words": len(values), **average(values)} for name, values in figures.items()]


SHARES = {"last four layers shuffled": 4, "all layers shuffled": 8}
"""Layers of the decoder whose weights are shuffled, by what it is called."""


def average(values: Sequence[float]) -> dict[str, float]:
    """Return the mean, and the bounds of 95 % of means of resamples."""
    rng = np.random.default_rng(SEED)
    array = np.array(values)
    means = array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def shuffle(model: Any, count: int) -> Any:
    """Return a copy of a model whose last layers have their weights in a random order."""
    spoilt = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(SEED)
    for layer in list(anatomy.decoder_layers(spoilt))[-count:]:
        for weight in layer.parameters():
            order = torch.randperm(weight.numel(), generator=draw)
            weight.data = weight.data.flatten()[order].reshape(weight.shape)
    return spoilt


def measure_cost(guard: Guard, rounds: int) -> list[dict[str, Any]]:
    """Return processor time of captions, plain and with the observer, as ratios within rounds."""
    picture = scenes("iid", 1, seed=SEED)[0].picture
    batch = guard.inputs(images=[picture], messages=write_prompt())
    stacks: dict[str, Any] = {
        "plain": None,
        "doubt": "doubt",
        "doubt, ask": [{"name": "doubt", "params": {"ask": True}}],
    }
    guards = {name: guard.using(stack) for name, stack in stacks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    for number in tqdm(range(rounds + 1), "cost"):
        for name, each in guards.items():
            started = time.process_time()
            each.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
            if number:  # the first round tries what later ones know
                seconds[name].append(time.process_time() - started)
    ratios = {name: np.array(values) / np.array(seconds["plain"]) for name, values in seconds.items()}
    return [
        {
            "call": name,
            "rounds": rounds,
            "seconds": float(np.median(seconds[name])),
            "ratio": float(np.median(values)),
            "ratio p20": float(np.percentile(values, 20)),
            "ratio p80": float(np.percentile(values, 80)),
        }
        for name, values in ratios.items()
    ]


def conclude(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return whether the default beats entropy and the greatest probability, in words."""
    sentences = []
    for row in rows:
        if row["words of"] != "all scenes, both levels" or row["score"] not in ("entropy", "max probability"):
            continue
        low, high = row["doubt minus it low"], row["doubt minus it high"]
        word = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
        sentences.append(
            f"The default doubt {word} {row['score']}: {row['doubt minus it value']:+.3f} [{low:+.3f}, {high:+.3f}]."
        )
    return sentences


def write(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the figures as JSON and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    write_at_once(folder / "doubt.json", json.dumps(values, indent=1) + "\n")
    about = "\n".join(f"- {name}: {value}" for name, value in values["about"].items())
    shown = (
        "auroc value",
        "auroc low",
        "auroc high",
        "doubt minus it value",
        "doubt minus it low",
        "doubt minus it high",
    )
    parts = [
        "# Doubts of words on held-out scenes",
        about,
        "\n".join(values["conclusions"]),
        "## How well each score tells wrong words from true ones",
        "Intervals hold 95 % of resamples of pictures.",
        table(values["scores"], ("words of", "score", "words", "wrong", *shown)),
        "## Whether a doubt is the share of wrong words",
        f"Mean distance over words: {values['calibration error']:.3f}.",
        table(values["reliability"], ("doubt from", "to", "words", "mean doubt", "share wrong")),
        "## Maps of occlusion",
        "Areas are of the word's probability as a share of that on the whole picture: for deletion less is better, for insertion more.",
        table(values["maps"], ("figure", "words", "mean", "low", "high")),
        "## Cost of the observer",
        table(values["cost"], ("call", "rounds", "seconds", "ratio", "ratio p20", "ratio p80")),
    ]
    write_at_once(folder / "doubt.md", "\n\n".join(parts) + "\n")


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--scenes", type=int, default=150, help="scenes of each kind")
    parser.add_argument("--maps", type=int, default=40, help="words whose maps are judged")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the cost")
    parser.add_argument("--tiny", action="store_true", help="a few scenes, to check that the script works")
    arguments = parser.parse_args()
    count, maps, rounds = (2, 1, 1) if arguments.tiny else (arguments.scenes, arguments.maps, arguments.rounds)
    torch.set_num_threads(1)
    model, processor = load("testbed", "cpu")
    guard = Guard(model, processor, None)
    described = describe(guard, [*scenes("counterfactual", count, seed=SEED), *scenes("iid", count, seed=SEED)])
    judged = [list(judge(number, each)) for number, each in enumerate(described)]
    breaking, keeping = ([word for words in half for word in words] for half in (judged[:count], judged[count:]))
    every = [*breaking, *keeping]
    groups = {
        "all scenes, both levels": every,
        "scenes that break a habit, both levels": breaking,
        "scenes drawn by the habits, both levels": keeping,
        "all scenes, objects": [word for word in every if word.level == "object"],
        "all scenes, colours": [word for word in every if word.level == "attribute"],
    }
    scores = [row for group, words in groups.items() for row in compare(words, group)]
    reliability, error = check_reliability(every)
    about = {
        **machine(torch.device("cpu")),
        "model": "testbed",
        "scenes": f"{count} counterfactual and {count} iid, seed {SEED}",
        "words": len(every),
        "wrong words": sum(word.is_wrong for word in every),
    }
    values = {
        "about": about,
        "conclusions": conclude(scores),
        "scores": scores,
        "reliability": reliability,
        "calibration error": error,
        "maps": [],
        "cost": [],
    }
    write(arguments.out, values)
    write(arguments.out, values | {"cost": (cost := measure_cost(guard, rounds))})
    write(arguments.out, values | {"cost": cost, "maps": judge_maps(guard, described, maps)})


if __name__ == "__main__":
    main()
