"""How well a doubt tells invented words from others: `python benchmarks/doubt.py --out results`.

The bundled model describes held-out scenes, half of which break a habit. Every word about the picture is true or not, by what the
scene holds: an object that is not there, or a colour that an object there has not. Colours of objects that are not there do not
count. Each score is judged by its AUROC, with intervals that resample pictures; the default doubt is compared with the others in
the same resamples. Maps of occlusion are judged by deletion and insertion against random orders, and by what becomes of them as
weights are shuffled. Cost is processor time, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from doubt_maps import judge_maps
from doubt_words import PROMPT, SEED, DescribedScene, check_reliability, compare, judge
from measuring import machine, table, write_at_once
from torch import Tensor
from tqdm import tqdm

from lvlm_guard import AttentionCapture, Branch, Generation, Guard, Revision, View, hookimpl
from lvlm_guard.loading import load
from lvlm_guard.testbed.world.scenes import Scene, scenes

TOKENS = 44
BATCH = 30
"""Captions of a call."""
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
