"""Fit a head on image tokens, its log-odds and the weights by which evidence is mixed with answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d

from lvlm_guard import InputError
from lvlm_guard.fitting import Fitted, LabelledPicture, LabelledPictures, Track
from lvlm_guard_evidence.calibration import build_cases, describe_mixing, fit_bias, fit_mixing, fit_scales
from lvlm_guard_evidence.caption_fitting import fit_captions
from lvlm_guard_evidence.examples import PictureLabels, check_labels, read_labels
from lvlm_guard_evidence.head import EvidenceHead, HeadEvidence
from lvlm_guard_evidence.head_fitting import Recorded, fit_weights, stack_tokens
from lvlm_guard_evidence.lens import build_lenses
from lvlm_guard_evidence.names import NamesTable, build_names
from lvlm_guard_evidence.questions import CalibrationQuestion, ask_questions
from lvlm_guard_evidence.recording import record_logits, record_tokens
from lvlm_guard_evidence.sources import (
    SOURCES,
    label_by_captions,
    label_by_crops,
    label_by_detector,
    read_first_tokens,
)

HELD_OUT = 5
"""Of so many pictures one is held out for calibration, where none are given for it."""
SAMPLE = 64
"""Pictures on which directions of tokens are found."""
DIRECTIONS = 512
"""Numbers that tokens are reduced to where they have more."""
LEAST_SHOWN = 4
"""Pictures that show a name at least for it to be fitted."""


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Labelled pictures with their tokens.

    Args:
        pictures: The pictures.
        recorded: Their tokens.
        labels: What they hold.
        basis: Directions to which the tokens were reduced `[hidden, directions]`; None where they are whole.
    """

    pictures: Sequence[LabelledPicture]
    recorded: Recorded
    labels: PictureLabels
    basis: Tensor | None = None

    def read(self, head: EvidenceHead) -> list[HeadEvidence]:
        """Return what a head makes of each picture."""
        tokens = zip(self.recorded.tokens, self.recorded.valid, self.recorded.places, strict=True)
        return [head.read(head.score(each[valid]), places[valid]) for each, valid, places in tokens]


def fit_patch_evidence(
    model: Any, processor: Any, data: LabelledPictures, track: Track = iter, *, seed: int = 0
) -> Fitted:
    """Fit `weight [names + values, hidden]`, `bias [names + values]` and `peaks [names]`, in fp32.

    The head is fitted on the pictures of `data`, labelled as its source says; log-odds, mixing weights and what is refused come
    from its calibration pictures alone, which need labels of their own.

    Args:
        model: The model.
        processor: Its processor.
        data: Pictures, calibration pictures, synonyms, and the source of the labels: `labels`, `self` (captions and answers of
            the model), `crops` (asked one by one), `detector` (a function), or `lens`, which fits no weights.
        track: Shows progress.
        seed: Seed of the batches and of the questions.

    Raises:
        InputError: Too few pictures or labels, or an unknown source.
        FitRefused: What was fitted helps no kind of question.
    """
    pictures, calibration = _split(data)
    if data.source == "lens":
        return _fit_lens(model, processor, pictures, calibration, data, track, seed)
    labelled = _label(model, processor, pictures, calibration, data, track)
    table, rare = _choose_names(labelled, data)
    table, unspoken = _drop_unspoken(table, processor)
    basis = find_basis(model, processor, labelled[:SAMPLE])
    fitting = _see(model, processor, labelled, table, None, track, basis)
    check_labels(fitting.labels)
    judging = _see(model, processor, calibration, table, fitting.labels.values, track, basis)
    weights = fit_weights(fitting.recorded, fitting.labels, seed=seed)
    head = EvidenceHead(
        weights.weight,
        weights.bias,
        table,
        fitting.labels.values,
        is_exclusive=fitting.labels.is_exclusive,
        source=data.source,
    )
    head = replace(head, peaks=fit_peaks(head, fitting))
    head = fit_scales(head, judging.read(head), judging.labels)
    return calibrate(
        model,
        processor,
        head,
        judging,
        track,
        seed,
        {"rare_names": rare, "unspoken_names": unspoken, "pictures": len(labelled)},
    )


def _fit_lens(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    calibration: Sequence[LabelledPicture],
    data: LabelledPictures,
    track: Track,
    seed: int,
) -> Fitted:
    """Return the logit lens at the layer that tells most of calibration pictures, centred on the others, which need no labels."""
    table, rare = _choose_names(calibration, data)
    table, unspoken = _drop_unspoken(table, processor)
    sizes = [each.picture.size for each in calibration]
    labels = read_labels(calibration, sizes, table)
    all_names = [*calibration, *pictures[: len(calibration)]]
    best: tuple[float, EvidenceHead, TokenSet] | None = None
    for head, recorded in build_lenses(model, processor, all_names, table, labels.values, track):
        token_set = TokenSet(calibration, recorded.first(len(calibration)), labels)
        scaled = fit_scales(head, token_set.read(head), labels)
        fitness = measure_existence(scaled, token_set.read(scaled), labels)
        if best is None or fitness > best[0]:
            best = (fitness, scaled, token_set)
    assert best is not None
    settings = {"rare_names": rare, "unspoken_names": unspoken, "layer": best[1].layer}
    return calibrate(model, processor, best[1], best[2], track, seed, settings)


def measure_existence(head: EvidenceHead, read: Sequence[HeadEvidence], labels: PictureLabels) -> float:
    """Return the balanced log-likelihood of what pictures show, in nats."""
    odds = torch.tensor([[picture.existence(name) or 0.0 for name in head.table.names] for picture in read])
    is_present = labels.present == 1
    return float(logsigmoid(odds[is_present]).mean() + logsigmoid(-odds[~is_present]).mean())


def calibrate(
    model: Any, processor: Any, head: EvidenceHead, judging: TokenSet, track: Track, seed: int, settings: dict[str, Any]
) -> Fitted:
    """Return a head with mixing weights, fitted on questions about calibration pictures.

    Raises:
        FitRefused: It helps no kind of question.
    """
    sizes = [each.picture.size for each in judging.pictures]
    questions = ask_questions(judging.pictures, sizes, head.table, head.values, seed)
    answerable, margins = ask_model(model, processor, judging.pictures, questions, track)
    cases = build_cases(answerable, margins, judging.read(head))
    mixing, findings = fit_mixing(cases)
    weight = head.weight if judging.basis is None else head.weight @ judging.basis.T
    whole_head = replace(head, weight=weight)
    captions, of_captions = fit_captions(model, processor, whole_head, judging.pictures, track)
    tensors = {"weight": weight.contiguous(), "bias": head.bias}
    if head.norm is not None:
        tensors |= {"norm_weight": head.norm.weight, "norm_bias": head.norm.bias}
    return Fitted(
        tensors if head.peaks is None else {**tensors, "peaks": head.peaks},
        {
            "source": head.source,
            "names": list(head.table.names),
            "synonyms": {name: list(spellings) for name, spellings in head.table.synonyms.items()},
            "values": list(head.values),
            "exclusive": head.is_exclusive,
            "centres": head.norm is not None and head.norm.centres,
            "scales": {level: [scale.slope, scale.offset] for level, scale in head.scales.items()},
            "mixing": describe_mixing(mixing),
            "fitted_bias": describe_mixing(fit_bias(cases)),
            "calibration": findings,
            "captions": [] if captions is None else [captions.weight, captions.offset],
            "caption_calibration": of_captions,
            "calibration_pictures": len(judging.pictures),
            **settings,
        },
    )


def ask_model(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    questions: Sequence[CalibrationQuestion],
    track: Track,
) -> tuple[list[CalibrationQuestion], list[Tensor]]:
    """Return the questions whose answers begin apart, and how likely each answer begins, fp32 `[answers]`."""
    beginnings = read_first_tokens(processor)
    tokens = {options: beginnings.find(options) for options in {question.options for question in questions}}
    answerable = [question for question in questions if tokens[question.options] is not None]
    prompts = [(pictures[question.picture].picture, question.text) for question in answerable]
    margins = record_logits(
        model, processor, prompts, [tokens[question.options] or [] for question in answerable], track
    )
    return answerable, margins


def _split(data: LabelledPictures) -> tuple[list[LabelledPicture], list[LabelledPicture]]:
    """Return pictures to fit on, and labelled ones for calibration: those given, else every fifth.

    Raises:
        InputError: An unknown source, or no labelled picture to calibrate on.
    """
    if data.source not in SOURCES:
        raise InputError(f"patch_evidence takes no labels from {data.source!r}. Known: {', '.join(SOURCES)}.")
    pictures = list(data.pictures)
    calibration = list(data.calibration) or pictures[::HELD_OUT]
    if not data.calibration:
        pictures = [picture for number, picture in enumerate(pictures) if number % HELD_OUT]
    labelled = [picture for picture in calibration if picture.objects]
    if not labelled:
        raise InputError(
            "patch_evidence weighs evidence against answers on calibration pictures with labelled objects, and there are none: give some, "
            "--calibration."
        )
    return pictures, labelled


def _label(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    calibration: Sequence[LabelledPicture],
    data: LabelledPictures,
    track: Track,
) -> list[LabelledPicture]:
    """Return pictures with labels from the source of the data."""
    if data.source == "self":
        return label_by_captions(model, processor, pictures, data.synonyms, track)
    if data.source == "detector":
        return label_by_detector(data.labeller, pictures, track)
    if data.source == "crops":
        names = [thing.name for picture in calibration for thing in picture.objects or ()]
        return label_by_crops(model, processor, pictures, build_names(names, data.synonyms), track)
    labelled = [picture for picture in pictures if picture.objects is not None]
    if not labelled:
        raise InputError(
            "patch_evidence is fitted on labelled pictures, and none of these has objects: give labels, or --source self, which fits on "
            "the model's own captions."
        )
    return labelled


def _choose_names(pictures: Sequence[LabelledPicture], data: LabelledPictures) -> tuple[NamesTable, int]:
    """Return the names that enough pictures show, and how many were left out."""
    all_names = build_names([thing.name for picture in pictures for thing in picture.objects or ()], data.synonyms)
    counts = Counter(
        name for picture in pictures for name in all_names.merge(thing.name for thing in picture.objects or ())
    )
    common = tuple(name for name in all_names.names if counts[name] >= LEAST_SHOWN)
    if not common:
        raise InputError(
            f"patch_evidence needs names that {LEAST_SHOWN} pictures or more show, and the labels of {len(pictures)} pictures have none."
        )
    synonyms = {name: spellings for name, spellings in all_names.synonyms.items() if name in common}
    return NamesTable(common, synonyms), len(all_names.names) - len(common)


def _drop_unspoken(table: NamesTable, processor: Any) -> tuple[NamesTable, list[str]]:
    """Return the names that the tokenizer can write, and those that it cannot: nobody can ask for them.

    Raises:
        InputError: It can write none.
    """
    beginnings = read_first_tokens(processor)
    unspoken = [
        name for name in table.names if beginnings.unknown in beginnings.tokenize(name) or not beginnings.tokenize(name)
    ]
    sayable = tuple(name for name in table.names if name not in unspoken)
    if not sayable:
        raise InputError(
            f"This model's tokenizer cannot write any of the names of the labels, such as {unspoken[0]!r}."
        )
    return NamesTable(
        sayable, {name: spellings for name, spellings in table.synonyms.items() if name in sayable}
    ), unspoken


def _see(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    table: NamesTable,
    values: Sequence[str] | None,
    track: Track,
    basis: Tensor | None,
) -> TokenSet:
    tokens, places = record_tokens(model, processor, [each.picture for each in pictures], track, basis=basis)
    sizes = [each.picture.size for each in pictures]
    return TokenSet(pictures, stack_tokens(tokens, places), read_labels(pictures, sizes, table, values), basis)


def find_basis(
    model: Any, processor: Any, pictures: Sequence[LabelledPicture], most: int = DIRECTIONS
) -> Tensor | None:
    """Return the directions in which the tokens of some pictures vary most `[hidden, most]`; None where they are few as they are.

    Tokens of a large model are reduced to these while the head is fitted; a head on them is linear in the tokens as well.
    """
    tokens = torch.cat(record_tokens(model, processor, [each.picture for each in pictures])[0])
    if tokens.shape[1] <= most:
        return None
    values, directions = torch.linalg.eigh(tokens.T.double() @ tokens.double())
    basis: Tensor = directions[:, values.argsort(descending=True)[:most]].float()
    return basis


def fit_peaks(head: EvidenceHead, token_set: TokenSet) -> Tensor | None:
    """Return for each name the score above which a local maximum counts, with the least error of the number; None without a grid."""
    peaks = [_list_peaks(evidence) for evidence in token_set.read(head)]
    if any(each is None for each in peaks):
        return None
    best = []
    for index in range(len(head.table.names)):
        of_name = [each[index] for each in peaks if each is not None]
        thresholds = torch.cat(of_name).quantile(torch.linspace(0.3, 1.0, 40))
        counted = torch.stack([(each[None] > thresholds[:, None]).sum(1) for each in of_name])
        truth = token_set.labels.counts[:, index]
        weights = torch.where(
            truth > 0, 1 / (truth > 0).float().mean().clamp(min=1e-6), 1 / (truth == 0).float().mean().clamp(min=1e-6)
        )
        best.append(thresholds[((counted - truth[:, None]).abs() * weights[:, None]).mean(0).argmin()])
    return torch.stack(best)


def _list_peaks(evidence: HeadEvidence) -> list[Tensor] | None:
    """Return the scores of the local maxima of each name; None where no grid is known."""
    grid = evidence.grid()
    if grid is None:
        return None
    names = len(evidence.names)
    scores = evidence.scores[: grid[0] * grid[1], :names].T.reshape(names, 1, *grid)
    highest = scores >= max_pool2d(scores, 3, 1, 1)
    return [each[top] for each, top in zip(scores, highest, strict=True)]
