"""Measure the bundled model for its card: `python -m lvlm_guard.testbed.card --weights DIR`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting.results import to_plain
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.intervals import Interval, interval
from lvlm_guard.testbed import architectures
from lvlm_guard.testbed.card import error_sources
from lvlm_guard.testbed.card.probe import probe
from lvlm_guard.testbed.card.text import markdown
from lvlm_guard.testbed.figures import CARD_FIGURES, NATURAL, Figure
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.model import WEIGHTS, load
from lvlm_guard.testbed.running import answer
from lvlm_guard.testbed.suite import Scenes, Split
from lvlm_guard.testbed.training.curriculum import natural_questions
from lvlm_guard.testbed.world.habits import CATEGORIES, CLEAR, residents
from lvlm_guard.testbed.world.language import DESCRIBE
from lvlm_guard.testbed.world.questions import Question, existence
from lvlm_guard.testbed.world.scenes import Scene, scene, scenes

CARD_SPLITS: tuple[Split, ...] = ("counterfactual", "iid")
CARD_SEED = 31
"""Scenes the figures are measured on; nothing was chosen by looking at them."""


class NaturalScenes(Scenes):
    """Scenes with yes/no questions in the proportions of training."""

    def build_questions(self, drawn: Sequence[Scene]) -> Iterator[list[tuple[Scene, str, Question]]]:
        """Yield for each scene questions drawn from its own random stream."""
        return (
            [(picture, str(at), question) for at, question in enumerate(natural_questions(picture))]
            for picture in drawn
        )


class ClearScenes(Scenes):
    """Scenes where nothing about the picture is weak: the habit has no excuse."""

    def draw(self, index: int) -> Scene:
        """Return the scene of this number, all of it clearly visible."""
        return scene(self.split, index, self.seed, evidence=CLEAR)


def measure_card(model: Any, processor: Any, count: int) -> dict[str, Any]:
    """Return every figure of the card: scores with intervals, where they come from, and what the parts hold."""
    answers = answer(model, processor, _card_suites(count))
    counterfactual, clear = answers["counterfactual"][GREEDY], answers["clear"][GREEDY]
    return {
        "architecture": architectures.architecture_of(model).name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "decoder_layers": model.config.text_config.num_hidden_layers,
        "scenes": count,
        "seed": CARD_SEED,
        "scores": {
            split: {
                **{name: _measured(figure, answers[split][GREEDY]) for name, figure in CARD_FIGURES.items()},
                "natural": _measured(NATURAL, answers[f"{split}-natural"][GREEDY]),
            }
            for split in CARD_SPLITS
        },
        "origins": error_sources.measure(model, processor, Scenes(count=count, seed=CARD_SEED), counterfactual),
        "clear": {name: _measured(CARD_FIGURES[name], clear)["value"] for name in ("object", "attribute", "relation")},
        "probe": probe(model, scenes("calibration", 600, CARD_SEED), scenes("counterfactual", 300, CARD_SEED)),
        "without_image": blind(model.generate, processor),
    }


def _card_suites(count: int) -> dict[str, Scenes]:
    """Both splits, both in training proportions, and the broken habits in clear view."""
    suites: dict[str, Scenes] = {split: Scenes(split=split, count=count, seed=CARD_SEED) for split in CARD_SPLITS}
    natural: dict[str, Scenes] = {
        f"{split}-natural": NaturalScenes(split=split, count=count, seed=CARD_SEED, captions=0) for split in CARD_SPLITS
    }
    return {**suites, **natural, "clear": ClearScenes(count=count, seed=CARD_SEED, captions=0)}


def _measured(figure: Figure, answers: Sequence[AnsweredItem]) -> dict[str, Any]:
    measure = figure.measure
    totals = measure.totals(answers)
    score = interval(totals, measure.statistic) if len(totals) else Interval(math.nan, math.nan, math.nan)
    return {**to_plain(score), "n": len(measure.rows(answers)[0])}


def blind(generate: Callable[..., Any], processor: Any) -> dict[str, Any]:
    """What the model says without an image: captions, and the share of 'yes' for residents and strangers."""
    captions = {}
    for background in ("image", "kitchen", "street"):
        captions[background] = _say(generate, processor, [DESCRIBE[0].replace("image", background)])[0]
    yes = {}
    for kind in ("resident", "stranger"):
        pairs = [
            (drawn, category)
            for drawn in scenes("iid", 40, CARD_SEED)
            for category in CATEGORIES
            if (category in residents(drawn.background)) == (kind == "resident")
        ]
        prompts = [existence(drawn, category, wording=1).text for drawn, category in pairs[::5]]
        texts = _say(generate, processor, prompts)
        yes[kind] = sum(text == "yes" for text in texts) / len(texts)
    return {"captions": captions, "yes_share_with_background_named": yes}


def _say(generate: Callable[..., Any], processor: Any, prompts: Sequence[str]) -> list[str]:
    messages = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    texts = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    output = generate(**inputs, max_new_tokens=44, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def write_card(folder: Path, count: int) -> None:
    """Measure the model of a folder on `count` scenes of each split and write its card there, in figures and words.

    Raises:
        TestbedError: The model cannot be loaded, or the card cannot be written.
    """
    model, processor = load(folder=folder)
    card = measure_card(model, processor, count)
    card["training"] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    card["megabytes"] = round((folder / "model.safetensors").stat().st_size / 1e6, 2)
    text = json.dumps(card, indent=2) + "\n"
    write_whole(folder / "card.json", text.encode("utf-8"))
    write_whole(folder / "MODEL_CARD.md", markdown(card).encode("utf-8"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Measures a trained model and writes card.json and MODEL_CARD.md beside it."
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=600, help="of each split")
    arguments = parser.parse_args()
    write_card(arguments.weights, arguments.scenes)


if __name__ == "__main__":
    main()
