"""Where wrong answers come from: habit, and what the model would say of a noised image or of none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.guard import Guard
from lvlm_guard.testbed.card.only import Blind, Noised
from lvlm_guard.testbed.evaluate import Answer, Generate, asked_about, batched, evaluate, is_right, prompts
from lvlm_guard.testbed.world.habits import CATEGORIES, residents
from lvlm_guard.testbed.world.language import mentions
from lvlm_guard.testbed.world.scenes import Scene, absent_partners

LEVELS = ("object", "attribute", "relation")


def branches(model: Any, processor: Any) -> dict[str, Generate]:
    """`generate` of what the model says without the image, and with a little or much noise in it."""
    kinds = {"image-free": Blind(), "noised a little": Noised(0.75), "noised": Noised()}
    return {name: Guard(model, processor, [kind]).generate for name, kind in kinds.items()}


def agreement(
    answers: Sequence[Answer], others: Mapping[str, Sequence[Answer]]
) -> dict[str, dict[str, dict[str, float]]]:
    """How often wrong and right answers agree with habit and with each branch, by level.

    A yes/no answer that is wrong agrees by chance half the time; compare the wrong with the right ones.
    """
    said = {name: {(one.scene, one.prompt): one.text for one in given} for name, given in others.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for level in LEVELS:
        asked = [one for one in answers if one.level == level and one.habit is not None]
        sides = {"wrong": [one for one in asked if not is_right(one)], "right": [one for one in asked if is_right(one)]}
        result[level] = {side: _agreement(chosen, said) for side, chosen in sides.items()}
    return result


def _agreement(chosen: Sequence[Answer], said: Mapping[str, Mapping[tuple[str, str], str]]) -> dict[str, float]:
    shares = {"n": float(len(chosen)), "habit": _mean([one.text == one.habit for one in chosen])}
    for name, texts in said.items():
        shares[name] = _mean([one.text == texts[one.scene, one.prompt] for one in chosen])
    return shares


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def margins(generate: Generate, processor: Any, scenes: Sequence[Scene]) -> dict[tuple[str, str], float]:
    """Logit of yes minus logit of no for every existence question about the scenes."""
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    found = {}
    for part in batched([ask for ask in asked_about(scenes) if ask.kind == "existence"], 32):
        inputs = prompts(part, processor)
        output = generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
        values = (output.logits[0][:, yes] - output.logits[0][:, no]).tolist()
        found.update({(ask.scene.name, ask.prompt): value for ask, value in zip(part, values, strict=True)})
    return found


def foretold(model: Any, processor: Any, scenes: Sequence[Scene]) -> dict[str, float]:
    """AUC with which each branch's margin tells, among absent objects, the hallucinated from the rejected ones.

    `truth` is another matter: how well the model's own margin tells present objects from absent partners.
    """
    plain = margins(model.generate, processor, scenes)
    asks = [ask for ask in asked_about(scenes) if ask.kind == "existence"]
    absent = [(ask.scene.name, ask.prompt) for ask in asks if ask.truth == "no"]
    fooled = [plain[key] > 0 for key in absent]
    found = {"truth": _separation(plain, asks)}
    for name, generate in branches(model, processor).items():
        given = margins(generate, processor, scenes)
        found[name] = auc([given[key] for key in absent], fooled)
    return found


def _separation(plain: Mapping[tuple[str, str], float], asks: Sequence[Any]) -> float:
    kept = [ask for ask in asks if ask.truth == "yes" or ask.negative == "adversarial"]
    return auc([plain[ask.scene.name, ask.prompt] for ask in kept], [ask.truth == "yes" for ask in kept])


def inventions(answers: Sequence[Answer], scenes: Sequence[Scene]) -> dict[str, float]:
    """Rates at which captions name absent categories: the partner of a present one, others at home here, strangers."""
    by_name = {scene.name: scene for scene in scenes}
    named = {"partner": np.zeros(2), "resident": np.zeros(2), "stranger": np.zeros(2)}
    for answer in answers:
        if answer.level == "caption":
            _count(by_name[answer.scene], {category for _, category in mentions(answer.text)}, named)
    return {kind: float(hits / max(1, chances)) for kind, (hits, chances) in named.items()}


def _count(scene: Scene, said: set[str], named: Mapping[str, np.ndarray]) -> None:
    partners, here = absent_partners(scene), residents(scene.background)
    for category in CATEGORIES:
        if category not in scene.present:
            kind = "partner" if category in partners else "resident" if category in here else "stranger"
            named[kind] += (category in said, 1)


def measure(model: Any, processor: Any, scenes: Sequence[Scene], answers: Sequence[Answer]) -> dict[str, Any]:
    """Everything of this module for scenes that were answered already."""
    others = {
        name: evaluate(generate, processor, scenes, captions=False).answers
        for name, generate in branches(model, processor).items()
    }
    return {
        "agreement": agreement(answers, others),
        "foretold": foretold(model, processor, [one for one in scenes if one.broken and one.broken.level == "object"]),
        "inventions": inventions(answers, scenes),
    }
