"""Plants faults in the bundled model and asks what is wrong with it: `python benchmarks/plants.py --out DIR`.

Every case is two batteries of 24 held-out known items and one verdict, kept in a file of its own: run again, it goes on where it was.
`--write` makes the page of what is there. Cases are in turn, so that a run that is cut short holds some of every kind.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm import tqdm

from lvlm_guard import anatomy, testbed
from lvlm_guard.diagnosis import Diagnosis, diagnose_model
from lvlm_guard.diagnosis.model.checks import find_odd_tokens, list_failures
from lvlm_guard.diagnosis.model.items import BATTERY, KnownItem, deal, encode, load_known_items
from lvlm_guard.diagnosis.model.judging import K
from lvlm_guard.diagnosis.model.measuring import measure, measure_swap
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.diagnosis.model.profile import SWAPPED, Profile, build_profile, choose_answer_tokens, describe_items
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.files import write_whole
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testing.plants import KINDS, Plant, draw_plant, planted
from lvlm_guard.testing.plants.training import Example

SEEDS, SOUND, VARIANTS = range(19, 25), range(200, 260), range(12, 16)
"""Seeds of the plants of each kind, of sound cases, and of cases of each sound variant."""
ITEMS = 2 * BATTERY
"""Known items of a case."""
PROFILE_ITEMS, STEPS = 624, 20
PROFILE_SEED, SOUND_SEED, PLANT_SEED, TRAINING_SEED = 0, 1000, 2000, 9000
HISTORY = (
    "The plants of seeds 0 to 18 and the first 200 sound cases were looked at while this was made, and are not among these: 48 items and "
    "logarithms of distances were chosen after 24 items without them named something in 4 of 11 sound cases, the fourth power at the "
    "output after an object bias was missed, the comparison of scores with logits after a temperature was missed, and the share that a "
    "knock-out has to give back after 4 of 6 priors were blamed on a feed-forward block. Items are weighed to ask as the profile's do, and more is "
    "expected of few pictures, since up to 28 of 60 sound cases were accused where profile and cases were drawn from unlike numbers of scenes, and abnormal "
    "attention is asked whether it looks away, since 6 of 6 priors were blamed on attention that does not."
)
GOALS = {"class": 0.95, "location": 0.90, "none": 0.95}


@dataclass(frozen=True)
class Case:
    """One verdict to be made: a planted fault, or a sound model as it is (`float32`), in `bfloat16` or `int8`."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.kind}-{self.seed}"


def list_cases(kinds: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Case]:
    """Return all cases, in turn.

    Args:
        kinds: Only these kinds.
        seeds: Seeds of every case, in place of those that the page stands on.
    """
    if seeds is not None:
        chosen = kinds or (*KINDS, "float32", "bfloat16", "int8")
        return [Case(kind, seed) for seed in seeds for kind in chosen]
    return [case for case in _list_all() if not kinds or case.kind in kinds]


def _list_all() -> list[Case]:
    cases = [Case(kind, seed) for seed in SEEDS for kind in KINDS]
    sound = [Case(variant, seed) for seed in VARIANTS for variant in ("bfloat16", "int8")]
    sound += [Case("float32", seed) for seed in SOUND]
    step = len(cases) / len(sound)
    ordered = [(at + 0.5, case) for at, case in enumerate(cases)] + [(at * step, case) for at, case in enumerate(sound)]
    return [case for _, case in sorted(ordered, key=lambda pair: pair[0])]


def draw_items(seed: int, count: int) -> list[KnownItem]:
    """Return known items of calibration scenes, as many of each kind as there are."""
    return load_known_items(Scenes(split="calibration", count=max(60, count), seed=seed), count)


class Bench:
    """A model, its profile, and the cases.

    Args:
        out: Where verdicts are kept.
        folder: The model, made as the bundled one was; None is the bundled one.
    """

    def __init__(self, out: Path, folder: Path | None = None) -> None:
        self.out = out
        self.name = "testbed" if folder is None else folder.name
        self.model, self.processor = testbed.load("cpu") if folder is None else testbed.load("cpu", folder=folder)
        self.variants = {"float32": self.model}

    def find_profile(self) -> Profile:
        """Return the profile; each of its batteries is kept once it is measured."""
        if (file := self.out / "profile.safetensors").exists():
            return Profile.load(file, self.model)
        items = draw_items(PROFILE_SEED, PROFILE_ITEMS)
        mix = QuestionMix.of(items, BATTERY)
        batteries, structure = deal(items, mix=mix), inspect_structure(self.model)
        tokens = choose_answer_tokens(self.model, self.processor, batteries)
        measured, swaps = [], []
        for number, battery in enumerate(tqdm(batteries, desc="profile", unit="battery")):
            kept = self.out / f"profile-{number}.pickle"
            if not kept.exists():
                one = measure(self.model, self.processor, structure, battery, tokens, mix)
                swap = None
                if number < SWAPPED:
                    swap = measure_swap(self.model, self.processor, structure, battery, mix)
                write_whole(kept, pickle.dumps((one, swap)))
            one, swap = pickle.loads(kept.read_bytes())  # noqa: S301 - written by this script
            measured.append(one)
            swaps += [swap] if number < SWAPPED else []
        failures = list_failures(structure, measured, find_odd_tokens(self.model, self.processor, batteries[0]))
        manifest = {
            "model": self.name,
            **describe_model(self.model),
            "split": f"scenes calibration, seed {PROFILE_SEED}",
            **describe_items(items, batteries, mix),
            "failures": [failure.component.key for failure in failures],
        }
        build_profile(measured, swaps, tokens, manifest).save(file)
        return Profile.load(file, self.model)

    def run(self, case: Case, profile: Profile) -> dict[str, Any]:
        """Make one verdict."""
        if case.kind in KINDS:
            plant = draw_plant(case.kind, case.seed, self.model, CATEGORIES)
            items = draw_items(PLANT_SEED + KINDS.index(plant.kind) * len(SEEDS) + case.seed, ITEMS)
            examples = self.draw_examples(case.seed) if plant.kind == "prior" else []
            with planted(plant, self.model, self.processor, examples):
                diagnosis = diagnose_model(self.model, self.processor, items, profile=profile)
            return {"case": asdict(case), "plant": asdict(plant), "diagnosis": diagnosis.to_dict()}
        items = draw_items(SOUND_SEED + case.seed, ITEMS)
        diagnosis = diagnose_model(self.find_variant(case.kind), self.processor, items, profile=profile)
        return {"case": asdict(case), "plant": None, "diagnosis": diagnosis.to_dict()}

    def draw_examples(self, seed: int) -> list[Example]:
        """Return batches of items with the pictures of others, and their labels."""
        batteries = deal(draw_items(TRAINING_SEED + seed, STEPS * BATTERY))
        encoded = [encode(self.model, self.processor, battery, swapped=True) for battery in batteries]
        return [(each.inputs, each.targets.masked_fill(~each.predicting, -100)) for each in encoded]

    def find_variant(self, name: str) -> Any:
        """Return the sound model in another precision."""
        if name not in self.variants:
            variant = copy.deepcopy(self.model)
            if name == "bfloat16":
                variant = variant.to(torch.bfloat16)
            else:
                _quantise(variant)
            self.variants[name] = variant
        return self.variants[name]


def _quantise(model: Any) -> None:
    """Round the weights of the decoder's products to 8 bits, a scale for each row."""
    for part in anatomy.decoder_layers(model).modules():
        if isinstance(part, nn.Linear):
            with torch.no_grad():
                scale = part.weight.abs().amax(1, keepdim=True) / 127
                part.weight.copy_((part.weight / scale).round() * scale)


def read_cases(out: Path, cases: Sequence[Case]) -> Iterator[tuple[Plant | None, str, Diagnosis]]:
    """Return what there is: the plant or None, the kind, and the verdict."""
    for case in cases:
        if (file := out / f"{case.name}.json").exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            plant = None if kept["plant"] is None else Plant(**kept["plant"])
            yield plant, case.kind, Diagnosis.from_dict(kept["diagnosis"])


def is_located(plant: Plant, diagnosis: Diagnosis) -> bool:
    """Whether a verdict names exactly the component."""
    culprit = diagnosis.culprit
    return (culprit.component, culprit.layer, culprit.head) == (plant.component, plant.layer, plant.head)


def summarise(out: Path, cases: Sequence[Case] | None = None) -> dict[str, Any]:
    """Return the figures of all verdicts that there are, of all cases or of some."""
    cases = list_cases() if cases is None else cases
    kinds: dict[str, Counter[str]] = {}
    matrix: dict[str, Counter[str]] = {}
    for plant, kind, diagnosis in read_cases(out, cases):
        found, stage = kinds.setdefault(kind, Counter()), diagnosis.culprit.stage
        expected = "none" if plant is None else plant.stage
        matrix.setdefault(expected, Counter())[stage] += 1
        found["verdicts"] += 1
        found["class"] += stage == expected
        found["location"] += is_located(plant, diagnosis) if plant is not None else stage == "none"
        if stage != expected or (plant is not None and not is_located(plant, diagnosis)):
            found[f"said {diagnosis.culprit.component} {diagnosis.culprit.layer} {diagnosis.culprit.head}"] += 1
    shares = {
        "class": _share(kinds, "class", KINDS),
        "location": _share(kinds, "location", KINDS),
        "none": _share(kinds, "class", ("float32",)),
        "none bfloat16": _share(kinds, "class", ("bfloat16",)),
        "none int8": _share(kinds, "class", ("int8",)),
    }
    return {
        "k": K,
        "cases": len(cases),
        "shares": shares,
        "goals": GOALS,
        "kinds": kinds,
        "matrix": matrix,
        "versions": _list_versions(),
    }


def _share(kinds: dict[str, Counter[str]], name: str, among: Sequence[str]) -> list[float | int | None]:
    """Return a share and what it is of."""
    total = sum(kinds[kind]["verdicts"] for kind in among if kind in kinds)
    right = sum(kinds[kind][name] for kind in among if kind in kinds)
    return [right / total if total else None, total]


def _list_versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def _tell_progress(figures: dict[str, Any]) -> list[str]:
    made = sum(found["verdicts"] for found in figures["kinds"].values())
    return (
        []
        if made == figures["cases"]
        else [f"{made} of {figures['cases']} verdicts were made; run it again to go on.", ""]
    )


def write_page(figures: dict[str, Any], subject: str = "the bundled model", history: str = HISTORY) -> str:
    """Return the figures as Markdown.

    Args:
        figures: Of `summarise`.
        subject: The model, in words.
        history: Which seeds were looked at before, in words.
    """
    lines = [
        "# Planted faults", "",
        (f"A verdict on {ITEMS} held-out known items of {subject}; profile of {PROFILE_ITEMS} others, k = {K:g}. Planted by "
        "`lvlm_guard.testing.plants`, run by `benchmarks/plants.py`. The profile saw none of these items."), "",
        *_tell_progress(figures),
        history, "",
        "| | share | of | goal |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, (share, total) in figures["shares"].items():
        if not total:
            continue
        lines.append(
            f"| {name} | {'-' if share is None else f'{share:.3f}'} | {total} | {figures['goals'].get(name, '')} |"
        )
    lines += ["", "## By kind", "", "| kind | verdicts | class | location | otherwise |", "|---|---|---|---|---|"]
    for kind in (*KINDS, "float32", "bfloat16", "int8"):
        if not (found := figures["kinds"].get(kind)):
            continue
        wrong = ", ".join(f"{key} x{count}" for key, count in sorted(found.items()) if key.startswith("said"))
        lines.append(
            f"| {kind} | {found.get('verdicts', 0)} | {found.get('class', 0)} | {found.get('location', 0)} | {wrong} |"
        )
    said = sorted({stage for row in figures["matrix"].values() for stage in row})
    lines += ["", "## Confusion", "", f"| planted | {' | '.join(said)} |", "|---" * (len(said) + 1) + "|"]
    for expected, row in figures["matrix"].items():
        lines.append(f"| {expected} | {' | '.join(str(row.get(stage, 0)) for stage in said)} |")
    return "\n".join(lines) + "\n"


def make_verdicts(bench: Bench, cases: Sequence[Case]) -> None:
    """Make the verdicts that are not there yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profile = bench.find_profile()
        for case in tqdm(cases, desc="plants", unit="verdict"):
            if not (file := bench.out / f"{case.name}.json").exists():
                write_whole(file, (json.dumps(bench.run(case, profile), indent=1) + "\n").encode())


def main() -> None:
    """Make the verdicts that are not there yet, then write the figures of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the verdicts")
    parser.add_argument("--kinds", nargs="*", help="only cases of these kinds")
    parser.add_argument("--seeds", nargs=2, type=int, metavar=("FROM", "TO"), help="other seeds, TO excluded")
    parser.add_argument("--model", type=Path, help="a model made as the bundled one was")
    parser.add_argument("--write", type=Path, help="folder for the page and its figures")
    parser.add_argument("--name", default="plants", help="what these are called there")
    parser.add_argument("--history", default=HISTORY, help="what the page says of the seeds")
    options = parser.parse_args()
    for folder in filter(None, (options.out, options.write)):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = list_cases(options.kinds, None if options.seeds is None else range(*options.seeds))
    bench = Bench(options.out, options.model)
    make_verdicts(bench, cases)
    if options.write:
        figures = summarise(options.out, cases)
        subject = "the bundled model" if options.model is None else f"`{bench.name}`"
        write_whole(options.write / f"{options.name}.json", (json.dumps(figures, indent=1) + "\n").encode())
        write_whole(options.write / f"{options.name}.md", write_page(figures, subject, options.history).encode())


if __name__ == "__main__":
    main()
