"""How much of what breaking a habit costs evidence can win back: `python benchmarks/evidence_ceiling.py --out results`.

Questions about scenes that the head was not fitted on are answered by the model, by the picture's evidence alone, by that
evidence read where the object really is, and by both as they were fitted. The ceiling is the most that any weights of margin, evidence
and constant win back, chosen on these very questions, while answers that habit gets right stay within a point.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lvlm_guard_evidence.calibration import build_cases
from lvlm_guard_evidence.examples import PictureLabels, read_labels
from lvlm_guard_evidence.head import KIND, EvidenceHead, HeadEvidence, read_head
from lvlm_guard_evidence.mixing import Mixing, read_mixing
from lvlm_guard_evidence.patch_evidence_fitter import ask_model
from lvlm_guard_evidence.questions import ask_questions
from lvlm_guard_evidence.recording import record_tokens
from lvlm_guard_evidence.weighing import CalibrationCase, list_candidates
from measuring import Results, machine
from torch import Tensor
from tqdm import tqdm

from lvlm_guard import Artefact
from lvlm_guard.loading import BUNDLED, load
from lvlm_guard.testbed import labelled

SEED = 1
"""Of the scenes; heads are calibrated on those of seed 0."""
LEAST = 60
"""Questions of each half, for a kind to be judged."""
LOSS = 0.01
"""Share of the answers that habit gets right which may be lost."""
HALVES = ("habit_true", "habit_breaking")
EVIDENCE_ALONE = Mixing(0.0, 1.0)
SHIPPED = Path(labelled.__file__).parent / "fitted" / "patch_evidence.safetensors"
SHOWN = (
    "kind",
    "questions",
    "model",
    "evidence",
    "evidence_in_the_box",
    "as_fitted",
    "ceiling",
    "won_back",
    "most_won_back",
)
NOTES = (
    "Accuracy where habit is right / where it is wrong. Won back: of what answers lose where habit is wrong, as fitted and at most.",
    (
        "The ceiling is chosen on the questions it is judged on, among weights that lose at most a point where habit is right: no fit "
        "can expect as much. Evidence in the box is read where the object really is; it says nothing else of existence and places."
    ),
)


@dataclass(frozen=True, eq=False)
class BoxedEvidence(HeadEvidence):
    """What one picture shows, with attributes read where the objects really are.

    Args:
        inside: Which tokens lie in the boxes of each name, bool `[names, tokens]`.
    """

    inside: Tensor

    def attention(self, index: int) -> Tensor:
        """Return an even distribution over the object's tokens; the head's own where the picture shows none."""
        inside = self.inside[index].float()
        return inside / inside.sum() if bool(inside.any()) else super().attention(index)


def measure(
    head: EvidenceHead, cases: Sequence[CalibrationCase], boxed: Sequence[CalibrationCase], kind: str
) -> dict[str, Any] | None:
    """Return the row of one kind of question; None where too few were asked."""
    of_kind = [case for case in cases if case.question.kind == kind and case.half in HALVES]
    in_boxes = [case for case in boxed if case.question.kind == kind and case.half in HALVES]
    counts = [sum(case.half == half for case in of_kind) for half in HALVES]
    if min(counts) < LEAST:
        return None
    mixing = read_mixing(head.settings).get(kind, Mixing())
    model, fitted = score(of_kind, Mixing()), score(of_kind, mixing)
    ceiling = find_ceiling(of_kind, model)
    return {
        "kind": kind,
        "questions": f"{counts[0]} / {counts[1]}",
        "model": show(model),
        "evidence": show(score(of_kind, EVIDENCE_ALONE)),
        "evidence_in_the_box": show(score(in_boxes, EVIDENCE_ALONE)),
        "as_fitted": show(fitted),
        "ceiling": show(ceiling),
        "won_back": share_won(model, fitted),
        "most_won_back": share_won(model, ceiling),
    }


def score(cases: Sequence[CalibrationCase], mixing: Mixing) -> tuple[float, float]:
    """Return the accuracies where habit is right and where it is wrong."""
    right = {half: [case.is_right(mixing) for case in cases if case.half == half] for half in HALVES}
    with_habit, against = (sum(of_half) / len(of_half) for of_half in right.values())
    return with_habit, against


def find_ceiling(cases: Sequence[CalibrationCase], model: tuple[float, float]) -> tuple[float, float]:
    """Return the accuracies under the weights that win most where habit is wrong and keep those where it is right."""
    margins, odds = (torch.stack([getattr(case, name) for case in cases]) for name in ("margins", "odds"))
    truths = torch.tensor([case.question.truth for case in cases])
    is_kept = torch.tensor([case.half == HALVES[0] for case in cases])
    best = model
    for mixing in list_candidates(cases[0].question.options):
        right = (margins + mixing.mix(margins, odds)).argmax(1) == truths
        with_habit, against = float(right[is_kept].double().mean()), float(right[~is_kept].double().mean())
        if with_habit >= model[0] - LOSS - 1e-9 and against > best[1]:
            best = with_habit, against
    return best


def share_won(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return how much of the loss where habit is wrong is gone."""
    return round((after[1] - before[1]) / max(before[0] - before[1], 1e-9), 3)


def show(accuracies: tuple[float, float]) -> str:
    """Return two accuracies as text."""
    return " / ".join(f"{share:.3f}" for share in accuracies)


def ask(
    model: Any, processor: Any, head: EvidenceHead, split: str, count: int
) -> tuple[list[CalibrationCase], list[CalibrationCase]]:
    """Return the questions about scenes with the head's evidence, and with that of the objects' boxes."""
    pictures = labelled.label_scenes(split, count, SEED)
    sizes = [each.picture.size for each in pictures]
    questions = ask_questions(pictures, sizes, head.table, head.values, SEED)
    answerable, margins = ask_model(model, processor, pictures, questions, tqdm)
    labels = read_labels(pictures, sizes, head.table, head.values)
    recorded = zip(*record_tokens(model, processor, [each.picture for each in pictures]), strict=True)
    evidence = [head.read(head.score(states), places) for states, places in recorded]
    return build_cases(answerable, margins, evidence), build_cases(answerable, margins, put_in_boxes(evidence, labels))


def put_in_boxes(evidence: Sequence[HeadEvidence], labels: PictureLabels) -> list[HeadEvidence]:
    """Return evidence that is read where the objects are."""
    return [
        BoxedEvidence(each.head, each.scores, each.places, labels.find_tokens(number, each.places))
        for number, each in enumerate(evidence)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=BUNDLED, help="one of the testbed's world")
    parser.add_argument("--artefact", type=Path, default=SHIPPED, help="what lvlm-guard fit evidence made of it")
    parser.add_argument("--split", default=labelled.CALIBRATION, help="of the scenes")
    parser.add_argument("--scenes", type=int, default=900)
    parser.add_argument("--called", default="", help="ends the names of the files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = load(options.model, "cpu", "float32")
    head = read_head(Artefact.load(options.artefact, KIND, model.config))
    cases, boxed = ask(model, processor, head, options.split, options.scenes)
    about = {
        **machine(torch.device("cpu")),
        "model": options.called or BUNDLED,
        "scenes": f"{options.scenes} of {options.split}, seed {SEED}",
    }
    name = "_".join(filter(None, ["evidence_ceiling", options.called]))
    results = Results(options.out, name, "What evidence can win back", about, SHOWN, csv=False, notes=list(NOTES))
    for kind in sorted({case.question.kind for case in cases}):
        if row := measure(head, cases, boxed, kind):
            results.add(**row)
    results.write()


if __name__ == "__main__":
    main()
