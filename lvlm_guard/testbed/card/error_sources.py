"""Where wrong answers come from: habit, and what the model would say of a noised image or of none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.host.stack import Stack
from lvlm_guard.testbed.card.single_branch import Blind, Noised
from lvlm_guard.testbed.running import answer
from lvlm_guard.testbed.scoring import CAPTION, is_right
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.habits import CATEGORIES, residents
from lvlm_guard.testbed.world.language import mentions
from lvlm_guard.testbed.world.scenes import Scene, absent_partners

LEVELS = ("object", "attribute", "relation")
BRANCHES: Mapping[str, object] = {"image-free": Blind(), "noised a little": Noised(0.75), "noised": Noised()}
"""Strategies that answer as the model does without the image, and with a little or much noise in it."""


def answer_branches(model: Any, processor: Any, suite: Scenes) -> dict[str, Sequence[AnsweredItem]]:
    """Return the answers of plain generation ("greedy") and of every branch to the questions of a suite."""
    stacks = {_system_name(name): Stack.of([strategy]) for name, strategy in BRANCHES.items()}
    answers = answer(model, processor, {"scenes": replace(suite, captions=0)}, stacks)["scenes"]
    return {GREEDY: answers[GREEDY], **{name: answers[_system_name(name)] for name in BRANCHES}}


def _system_name(branch: str) -> str:
    return branch.replace(" ", "-")


def agreement(
    answers: Sequence[AnsweredItem], branch_answers: Mapping[str, Sequence[AnsweredItem]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return how often wrong and right answers agree with habit and with each branch, by level.

    A yes/no answer that is wrong agrees by chance half the time; compare the wrong with the right ones.
    """
    texts = {name: {reply.item.id: reply.text.strip() for reply in branch} for name, branch in branch_answers.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for level in LEVELS:
        habitual = [reply for reply in answers if reply.item.level == level and reply.item.extra["habit"] is not None]
        sides = {
            "wrong": [reply for reply in habitual if not is_right(reply)],
            "right": [reply for reply in habitual if is_right(reply)],
        }
        result[level] = {side: _agreement(chosen, texts) for side, chosen in sides.items()}
    return result


def _agreement(chosen: Sequence[AnsweredItem], texts: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    shares = {
        "n": float(len(chosen)),
        "habit": _mean([reply.text.strip() == reply.item.extra["habit"] for reply in chosen]),
    }
    for name, by_item in texts.items():
        shares[name] = _mean([reply.text.strip() == by_item[reply.item.id] for reply in chosen])
    return shares


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def predict_hallucinations(answers: Mapping[str, Sequence[AnsweredItem]]) -> dict[str, float]:
    """Return the AUC with which each branch's margin tells, among absent objects, the hallucinated from the rejected ones.

    `truth` is another matter: how well the model's own margin tells present objects from absent partners.

    Args:
        answers: Those of plain generation ("greedy") and of every branch, with their margins.
    """
    plain = margins(answers[GREEDY])
    existence = [reply.item for reply in answers[GREEDY] if reply.item.id in plain]
    absent = [item.id for item in existence if item.truth == "no"]
    hallucinated = [plain[item] > 0 for item in absent]
    partners = [item for item in existence if item.truth == "yes" or item.extra["negative"] == "adversarial"]
    shares = {"truth": auc([plain[item.id] for item in partners], [item.truth == "yes" for item in partners])}
    for name in BRANCHES:
        branch = margins(answers[name])
        shares[name] = auc([branch[item] for item in absent], hallucinated)
    return shares


def margins(answers: Sequence[AnsweredItem]) -> dict[str, float]:
    """Return the logit of yes minus that of no by item, for every existence question."""
    return {
        reply.item.id: reply.margin for reply in answers if reply.item.kind == "existence" and reply.margin is not None
    }


def inventions(answers: Sequence[AnsweredItem], suite: Scenes) -> dict[str, float]:
    """Return the rates at which captions name absent categories: a present one's partner, others at home here, strangers."""
    counts = {"partner": np.zeros(2), "resident": np.zeros(2), "stranger": np.zeros(2)}
    for reply in answers:
        if reply.item.kind == CAPTION:
            _count(suite.find(reply.item.cluster), {category for _, category in mentions(reply.text)}, counts)
    return {kind: float(hits / max(1, chances)) for kind, (hits, chances) in counts.items()}


def _count(scene: Scene, named: set[str], counts: Mapping[str, np.ndarray]) -> None:
    partners, at_home = absent_partners(scene), residents(scene.background)
    for category in CATEGORIES:
        if category not in scene.present:
            kind = "partner" if category in partners else "resident" if category in at_home else "stranger"
            counts[kind] += (category in named, 1)


def measure(model: Any, processor: Any, suite: Scenes, answers: Sequence[AnsweredItem]) -> dict[str, Any]:
    """Return everything of this module.

    Args:
        model: The model.
        processor: Its processor.
        suite: Counterfactual scenes.
        answers: What the model says to all items of the suite, captions included.
    """
    branch_answers = answer_branches(model, processor, suite)
    branches = {name: branch_answers[name] for name in BRANCHES}
    return {
        "agreement": agreement(answers, branches),
        "foretold": predict_hallucinations(branch_answers),
        "inventions": inventions(answers, suite),
    }
