"""Measures the bundled model for its card: `python -m lvlm_guard.testbed.card --weights DIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvlm_guard.bench.scoring.intervals import interval
from lvlm_guard.testbed import architectures
from lvlm_guard.testbed.card import origins
from lvlm_guard.testbed.card.probe import probe
from lvlm_guard.testbed.card.text import markdown
from lvlm_guard.testbed.evaluate import Answer, Generate, evaluate
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.measures import CARD_MEASURES, NATURAL, Measure
from lvlm_guard.testbed.model import WEIGHTS, load
from lvlm_guard.testbed.training.lessons import natural_questions
from lvlm_guard.testbed.world.habits import CATEGORIES, CLEAR, residents
from lvlm_guard.testbed.world.language import DESCRIBE
from lvlm_guard.testbed.world.questions import existence
from lvlm_guard.testbed.world.scenes import scene, scenes

CARD_SPLITS = ("counterfactual", "iid")
CARD_SEED = 31
"""Scenes the figures are measured on; nothing was chosen by looking at them."""


def measure_card(model: Any, processor: Any, count: int) -> dict[str, Any]:
    """Every figure of the card: scores with intervals, where they come from, and what the parts hold."""
    figures: dict[str, Any] = {
        "architecture": architectures.of(model).name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "decoder_layers": model.config.text_config.num_hidden_layers,
        "scenes": count,
        "seed": CARD_SEED,
        "scores": {},
    }
    for split in CARD_SPLITS:
        given = scenes(split, count, CARD_SEED)
        answers = evaluate(model.generate, processor, given).answers
        natural = evaluate(model.generate, processor, given, questions=natural_questions, captions=False).answers
        figures["scores"][split] = {name: _measured(one, answers) for name, one in CARD_MEASURES.items()}
        figures["scores"][split]["natural"] = _measured(NATURAL, natural)
        if split == "counterfactual":
            figures["origins"] = origins.measure(model, processor, given, answers)
    figures["clear"] = _clear(model, processor, count)
    figures["probe"] = probe(model, scenes("calibration", 600, CARD_SEED), scenes("counterfactual", 300, CARD_SEED))
    figures["without_image"] = blind(model.generate, processor)
    return figures


def _measured(measure: Measure, answers: Sequence[Answer]) -> dict[str, float]:
    found = interval(measure.totals(answers), measure.statistic)
    return {**asdict(found), "n": sum(measure.chosen(answer) for answer in answers)}


def _clear(model: Any, processor: Any, count: int) -> dict[str, float]:
    """Accuracy on broken colours and orders where nothing about the picture is weak: the habit has no excuse."""
    drawn = [scene("counterfactual", index, CARD_SEED, evidence=CLEAR) for index in range(count)]
    answers = evaluate(model.generate, processor, drawn, captions=False).answers
    return {name: _measured(CARD_MEASURES[name], answers)["value"] for name in ("object", "attribute", "relation")}


def blind(generate: Generate, processor: Any) -> dict[str, Any]:
    """What the model says without an image: captions, and the share of 'yes' for residents and strangers."""
    told = {}
    for background in ("image", "kitchen", "street"):
        told[background] = _say(generate, processor, [DESCRIBE[0].replace("image", background)])[0]
    yes = {}
    for kind in ("resident", "stranger"):
        given = scenes("iid", 40, CARD_SEED)
        chosen = [(s, c) for s in given for c in CATEGORIES if (c in residents(s.background)) == (kind == "resident")]
        said = _say(generate, processor, [existence(s, c, wording=1).text for s, c in chosen[::5]])
        yes[kind] = sum(text == "yes" for text in said) / len(said)
    return {"captions": told, "yes_share_with_background_named": yes}


def _say(generate: Generate, processor: Any, prompts: Sequence[str]) -> list[str]:
    messages = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    texts = [processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    output = generate(**inputs, max_new_tokens=44, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def write_card(folder: Path, count: int) -> None:
    """Measures the model of a folder on `count` scenes of each split and writes its card there, in figures and words.

    Raises:
        TestbedError: The model cannot be loaded, or the card not be written.
    """
    model, processor = load(folder=folder)
    card = measure_card(model, processor, count)
    card["training"] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    card["megabytes"] = round((folder / "model.safetensors").stat().st_size / 1e6, 2)
    text = json.dumps(card, indent=2) + "\n"
    write_whole(folder / "card.json", text.encode("utf-8"))
    write_whole(folder / "MODEL_CARD.md", markdown(card).encode("utf-8"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measures a trained model and writes card.json and MODEL_CARD.md beside it."
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=600, help="of each split")
    asked = parser.parse_args()
    write_card(asked.weights, asked.scenes)


if __name__ == "__main__":
    main()
