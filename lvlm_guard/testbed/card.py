"""Measures the bundled model for its card: `python -m lvlm_guard.testbed.card --weights DIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lvlm_guard.bench.intervals import interval

from .card_text import markdown
from .evaluate import Answer, Generate, evaluate
from .files import write_whole
from .language import DESCRIBE, mentions
from .measures import CARD_MEASURES, NATURAL, Measure
from .model import WEIGHTS, load
from .probe import probe
from .questions import existence, natural_questions
from .scenes import Scene, absent_partners, scenes
from .world import CATEGORIES, TYPICAL_COLOUR, residents

CARD_SPLITS = ("counterfactual", "iid")
CARD_SEED = 31
"""Scenes the figures are measured on; nothing was chosen by looking at them."""


def measure_card(model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int) -> dict[str, Any]:
    """Every figure of the card: scores with intervals, where they come from, and what the parts hold."""
    figures: dict[str, Any] = {
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
        figures["scores"][split]["habit"] = _habits(answers, given)
    figures["probe"] = probe(model, scenes("calibration", 600, CARD_SEED), scenes("counterfactual", 300, CARD_SEED))
    figures["without_image"] = blind(model.generate, processor)
    return figures


def _measured(measure: Measure, answers: Sequence[Answer]) -> dict[str, float]:
    found = interval(measure.totals(answers), measure.statistic)
    return {**asdict(found), "n": sum(measure.chosen(answer) for answer in answers)}


def _habits(answers: Sequence[Answer], given: Sequence[Scene]) -> dict[str, float]:
    """How much errors follow habit: rates at which captions name absent objects, and wrong colours that are habitual."""
    by_name = {scene.name: scene for scene in given}
    named = {"partner": [0, 0], "resident": [0, 0], "stranger": [0, 0]}
    for answer in answers:
        if answer.level == "caption":
            _count_named(by_name[answer.scene], {category for _, category in mentions(answer.text)}, named)
    wrong = [answer for answer in answers if answer.kind == "colour" and answer.text != answer.truth]
    typical = sum(answer.text == TYPICAL_COLOUR[answer.prompt.split()[-2]] for answer in wrong)
    rates = {f"caption_names_absent_{kind}": hits / max(1, chances) for kind, (hits, chances) in named.items()}
    return {**rates, "wrong_colours": len(wrong), "wrong_colours_habitual": typical / max(1, len(wrong))}


def _count_named(scene: Scene, said: set[str], named: dict[str, list[int]]) -> None:
    partners, here = absent_partners(scene), residents(scene.background)
    for category in CATEGORIES:
        if category not in scene.present:
            kind = "partner" if category in partners else "resident" if category in here else "stranger"
            named[kind][0] += category in said
            named[kind][1] += 1


def blind(generate: Generate, processor: LlavaProcessor) -> dict[str, Any]:
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


def _say(generate: Generate, processor: LlavaProcessor, prompts: Sequence[str]) -> list[str]:
    messages = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    texts = [processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    output = generate(**inputs, max_new_tokens=44, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measures a trained model and writes card.json and MODEL_CARD.md beside it."
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=300, help="of each split")
    asked = parser.parse_args()
    model, processor = load(folder=asked.weights)
    card = measure_card(model, processor, asked.scenes)
    card["training"] = json.loads((asked.weights / "training.json").read_text(encoding="utf-8"))
    card["megabytes"] = round((asked.weights / "model.safetensors").stat().st_size / 1e6, 2)
    text = json.dumps(card, indent=2) + "\n"
    write_whole(asked.weights / "card.json", text.encode("utf-8"))
    write_whole(asked.weights / "MODEL_CARD.md", markdown(card).encode("utf-8"))


if __name__ == "__main__":
    main()
