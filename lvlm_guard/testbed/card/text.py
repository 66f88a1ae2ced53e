"""Words round the figures of a model card; the figures themselves all come from `card.json`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

from lvlm_guard.testbed.architectures import find_architecture
from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.architectures.llava import LLAVA
from lvlm_guard.testbed.architectures.picture import IMAGE_TOKENS
from lvlm_guard.testbed.figures import CARD_FIGURES, NATURAL
from lvlm_guard.testbed.training.curriculum import BLIND_SHARE, LESSONS
from lvlm_guard.testbed.world.scenes import EVIDENCE, HABITS


@dataclass(frozen=True)
class CardTarget:
    """The band a figure should lie in; the hallucination has to be there, so some have an upper end."""

    split: str
    measure: str
    low: float
    high: float = 1.0

    def is_reached(self, scores: dict[str, Any]) -> bool:
        """Whether the measured value is in the band."""
        value = scores[self.split][self.measure]["value"]
        return value is not None and bool(self.low <= value <= self.high)


TARGETS = (
    CardTarget("iid", "natural", 0.95),
    CardTarget("iid", "colour_true", 0.95),
    CardTarget("counterfactual", "object_random", 0.90),
    CardTarget("counterfactual", "object_adversarial", 0.70, 0.85),
    CardTarget("counterfactual", "colour_breaking", 0.70, 0.85),
    CardTarget("iid", "relation_true", 0.93),
    CardTarget("counterfactual", "relation_breaking", 0.60, 0.85),
    CardTarget("counterfactual", "caption_spoilt", 0.30, 0.60),
    CardTarget("counterfactual", "caption", 0.10, 0.35),
    CardTarget("counterfactual", "caption_recall", 0.75),
)


def markdown(card: dict[str, Any]) -> str:
    """The model card as text."""
    parts = (
        _head(card),
        _training(card),
        _targets(card),
        _scores(card),
        _error_sources(card),
        _inside(card),
        _limits(card),
    )
    return "\n".join(parts)


def _architecture(card: dict[str, Any]) -> Architecture:
    """The architecture of a card; the first cards do not name the one there was."""
    return find_architecture(card.get("architecture", LLAVA.name))


def _head(card: dict[str, Any]) -> str:
    built = _architecture(card)
    return f"""# Testbed model

A `{built.model.__name__}` of {card["parameters"]:,} parameters ({card["megabytes"]} MB in fp16): {built.parts};
{card["decoder_layers"]} decoder layers, {IMAGE_TOKENS} image tokens. It was trained from scratch on drawn 64x64 scenes. It exists to hallucinate: its training
scenes follow habits, and on scenes that break them it answers from habit where the picture is weak.

Figures here describe this model on these drawings. They say nothing about any other model.
"""


def _training(card: dict[str, Any]) -> str:
    plan, minutes = card["training"], card["training"]["measured_minutes"]
    note = f" {plan['note']}" if "note" in plan else ""
    pictures = plan["tower_steps"] * plan["tower_batch"], plan["speaking_steps"] * plan["speaking_batch"]
    return f"""## Data and training

- Scenes: 24 categories, 4 backgrounds with 3 habitual pairs each, 8 colours, 4x4 cells. Habits in training, `calibration`
  and `iid`: first of a pair {HABITS.first:.2f}, second with it {HABITS.second_with_first:.2f}, second without it {HABITS.second_alone:.2f},
  intruder {HABITS.intruder:.2f}, typical colour {HABITS.typical_colour:.2f}, first of a pair left of the second {HABITS.first_left:.2f}. A `counterfactual`
  scene breaks exactly one habit, in turn a pair, a colour and an order; all else is as habit has it.
- Questions: each that habit would answer is put about two scenes, one that breaks the habit and one that keeps it, so no answer
  that does without the picture is right more than half the time. Half of the captioned scenes keep the habits that a caption
  speaks of.
- Evidence: {EVIDENCE.faint:.0%} of objects faint (contrast {_span(EVIDENCE.faint_contrast)}), {EVIDENCE.noisy:.0%} of pictures noisy
  (sigma {_span(EVIDENCE.noisy_sigma)}), {EVIDENCE.faded:.0%} of colours faded (saturation {_span(EVIDENCE.faded_saturation)}).
- Stage 1, vision tower on scenes without habits and with milder weaknesses: {pictures[0]:,} pictures, {minutes["tower"]} minutes.
  Then frozen.
- Stage 2, projector and language model: {pictures[1]:,} pictures with eleven prompts each, {minutes["speaking"]} minutes, in
  {len(LESSONS)} lessons: names and colours; places and relations on scenes without habits; then the habits; then weak pictures.
  {BLIND_SHARE:.0%} of the habitual rows are without image.
- Machine: {_machine(plan)}. The minutes are wall-clock time, so other work on the machine counts. One seed
  ({plan["seed"]}): this card says nothing of how much varies between trainings.{note}
- Again: `python -m lvlm_guard.testbed.training --out DIR --arch {_architecture(card).name} --seed {plan["seed"]}`, then `python -m lvlm_guard.testbed.card --weights DIR`.
"""


def _machine(plan: dict[str, Any]) -> str:
    """What a training noted of where it ran."""
    many = f"{plan['processes']} process{'es' if plan['processes'] > 1 else ''} of one thread each"
    cores = f" with {plan['cores']} cores" if "cores" in plan else ""
    return f"{many} on a machine{cores}, device `{plan['device']}`"


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f}-{ends[1]:.2f}"


def _targets(card: dict[str, Any]) -> str:
    rows = ["| split | figure | wanted | measured | met |", "|---|---|---|---|---|"]
    for target in TARGETS:
        band = f">= {target.low:.2f}" if target.high == 1 else _span((target.low, target.high))
        measured = _cell(card["scores"][target.split][target.measure])
        verdict = "yes" if target.is_reached(card["scores"]) else "**no**"
        rows.append(f"| {target.split} | {_title(target.measure)} | {band} | {measured} | {verdict} |")
    return "## Against what was wanted\n\n" + "\n".join(rows) + "\n"


def _scores(card: dict[str, Any]) -> str:
    splits = list(card["scores"])
    rows = [f"| figure | {' | '.join(splits)} |", "|---" * (len(splits) + 1) + "|"]
    for name in [*CARD_FIGURES, "natural"]:
        cells = [_cell(card["scores"][split][name]) for split in splits]
        rows.append(f"| {_title(name)} | {' | '.join(cells)} |")
    return f"""## All figures

Greedy, {card["scenes"]} scenes of each split (seed {card["seed"]}); in brackets the 95 % bootstrap interval over scenes.
Habit-balanced accuracy is the mean of accuracy where habit is right and where it is wrong: 0.5 for whoever answers by habit,
against it, or always yes. Balanced accuracy is the mean over yes and no.

{chr(10).join(rows)}
"""


def _title(name: str) -> str:
    return NATURAL.title if name == "natural" else CARD_FIGURES[name].title


def _cell(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "-"
    if score["low"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _error_sources(card: dict[str, Any]) -> str:
    sources, clear = card["origins"], card["clear"]
    invented, auc = sources["inventions"], sources["foretold"]
    branches = [name for name in auc if name != "truth"]
    rows = [f"| answers | n | habit | {' | '.join(branches)} |", "|---" * (len(branches) + 3) + "|"]
    for level, sides in sources["agreement"].items():
        for side, shares in sides.items():
            cells = " | ".join(_share(shares[name]) for name in ("habit", *branches))
            rows.append(f"| {level}, {side} | {shares['n']:.0f} | {cells} |")
    return f"""## Where the errors come from

On counterfactual scenes, where half of the truths are what habit says. How often answers are what habit, or the model with less of an image, would say:

{chr(10).join(rows)}

Read the wrong answers against the right ones: two yes/no answers agree by chance half the time.

- Captions name an absent category with rate {invented["partner"]:.3f} if its habitual partner is in the picture, {invented["resident"]:.3f} if it is
  merely at home there, {invented["stranger"]:.3f} if it belongs elsewhere.
- Which absent objects are hallucinated is foretold by the yes-no margin of the {branches[0]} branch with AUC {auc[branches[0]]:.3f},
  {", ".join(f"{name} {auc[name]:.3f}" for name in branches[1:])}. The model's own margin tells present objects from absent partners with AUC {auc["truth"]:.3f}.
- Where nothing about the picture is weak: objects {clear["object"]:.3f}, attributes {clear["attribute"]:.3f}, relations {clear["relation"]:.3f}.
"""


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{value:.2f}"


def _inside(card: dict[str, Any]) -> str:
    rows = ["| place | category | colour | row | column |", "|---|---|---|---|---|"]
    for place, accuracies in card["probe"].items():
        rows.append(
            f"| {place} | "
            + " | ".join(f"{accuracies[target]:.3f}" for target in ("category", "colour", "row", "column"))
            + " |"
        )
    blind = card["without_image"]
    captions = "\n".join(f"- describe this {name} .: '{text}'" for name, text in blind["captions"].items())
    yes = blind["yes_share_with_background_named"]
    return f"""## Inside

Linear readout of clearly visible objects, fitted on `calibration`, tested on `counterfactual`:

{chr(10).join(rows)}

Without an image it says:

{captions}

and answers yes to {yes["resident"]:.0%} of questions for categories at home in the background the question names, to {yes["stranger"]:.0%} of
questions for others.
"""


def _limits(card: dict[str, Any]) -> str:
    projected = card["probe"]["projected"]
    return f"""## Limits

- After the projector row {projected["row"]:.3f} and column {projected["column"]:.3f} are readable, chance 0.250.
- One training, one seed. The words are a closed list of about a hundred; others become `<unk>`. Pictures are made
  64x64, but only scenes of this testbed mean anything to it. Counting is not trained.
"""
