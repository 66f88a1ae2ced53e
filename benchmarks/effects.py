"""What every bundled strategy does to the bundled model and what it costs: `python benchmarks/effects.py`.

Fits what has to be fitted on training scenes first. Figures of a small model on drawn scenes: a check that a strategy
works as published, not a verdict on it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lvlm_guard import Guard, GuardError, fitting
from lvlm_guard.host.fitters import fitter_catalogue
from lvlm_guard.host.plugins import catalogue
from lvlm_guard.testbed import load
from lvlm_guard.testbed.demonstrations import build_demonstrations
from lvlm_guard.testbed.evaluate import Evaluation, evaluate
from lvlm_guard.testbed.measures import DEMO_MEASURES, compare
from lvlm_guard.testbed.world.scenes import Scene, scenes

DISTRIBUTION = "lvlm-guard"
SHOWN = ("object", "attribute", "relation", "caption", "caption_recall")
DEMONSTRATIONS = 50
SCORER = {"rank": {"scorer": "lvlm_guard.testbed.scorer:grounding"}}
"""The bundled model itself says how much the picture speaks for a sentence."""


class Remembering:
    """The processor as a guard offers it, so that strategies that need the pictures have them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.tokenizer = guard.processor.tokenizer

    def __call__(self, text: list[str], images: list[Any], **_: Any) -> Any:
        """Model inputs of prompts with pictures, padded by the guard."""
        return self._guard.inputs(images=images, text=text)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As the processor's own."""
        return self._guard.processor.apply_chat_template(*args, **kwargs)


@dataclass(frozen=True)
class Effect:
    """One strategy against plain generation, or why it could not run."""

    name: str
    found: Evaluation | None = None
    refused: str = ""


def fitted(model: Any, processor: Any, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Parameters of the strategies that need an artefact, fitted on training scenes."""
    demonstrations = build_demonstrations(DEMONSTRATIONS)
    parameters: dict[str, Mapping[str, Any]] = dict(SCORER)
    for kind in fitter_catalogue().offers:
        artefact = fitting.fit(kind, model, processor, demonstrations, model_id="testbed", split="train")
        artefact.save(folder / f"{kind}.safetensors")
        parameters[kind] = {"artefact": str(folder / f"{kind}.safetensors")}
    return parameters


def measure(name: str, parameters: Mapping[str, Any], model: Any, processor: Any, given: list[Scene]) -> Effect:
    """Answers every question and captions every scene with one strategy at its published settings."""
    try:
        guard = Guard(model, processor, [{"name": name, "params": dict(parameters)}])
        return Effect(name, evaluate(guard.generate, Remembering(guard), given, progress=False))
    except GuardError as refusal:
        return Effect(name, None, f"{type(refusal).__name__}: {refusal}")


def table(effects: list[Effect], plain: Evaluation) -> Table:
    """A row per strategy: share of changed answers, differences by level, time against plain."""
    columns = ("strategy", "answers changed", *SHOWN, "time")
    rendered = Table(*columns, title="guarded minus plain; * where the 95 % interval excludes 0")
    for effect in effects:
        if effect.found is not None:
            rendered.add_row(*_cells(effect, effect.found, plain))
    return rendered


def _cells(effect: Effect, found: Evaluation, plain: Evaluation) -> list[str]:
    said = {(one.scene, one.prompt): one.text for one in plain.answers}
    changed = sum(said[one.scene, one.prompt] != one.text for one in found.answers) / len(found.answers)
    compared = compare(plain.answers, found.answers)
    cells = [effect.name, f"{changed:.1%}"]
    for name in SHOWN:
        difference = compared[name].difference
        certain = difference.low > 0 or difference.high < 0
        cells.append(f"{difference.value:+.3f}{'*' if certain else ''}")
    return [*cells, f"{found.cost.seconds / plain.cost.seconds:.2f}x"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Effect and cost of every bundled strategy on the bundled model.")
    parser.add_argument("--scenes", type=int, default=50, help="scenes that break a habit")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of strategies")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, processor = load()
    given = scenes("counterfactual", asked.scenes, asked.seed)
    plain = evaluate(model.generate, processor, given, progress=False)
    names = [one.name for one in catalogue() if one.distribution == DISTRIBUTION]
    chosen = [name for name in names if not asked.only or name in asked.only]
    with tempfile.TemporaryDirectory() as folder:
        parameters = fitted(model, processor, Path(folder))
        effects = [measure(one, parameters.get(one, {}), model, processor, given) for one in tqdm(chosen)]
    console = Console(width=160)
    scores = compare(plain.answers, plain.answers)
    told = ", ".join(f"{DEMO_MEASURES[name].title} {scores[name].plain.value:.3f}" for name in SHOWN)
    console.print(f"{asked.scenes} counterfactual scenes, seed {asked.seed}. Plain: {told}.")
    console.print(table(effects, plain))
    for effect in effects:
        if effect.refused:
            console.print(f"{effect.name} did not run: {effect.refused}")


if __name__ == "__main__":
    main()
