"""Weights and thresholds of `revise`, from the model's own captions of pictures whose truth is known."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lvlm_guard import Generation, Guard, HiddenEdit, InputError, NoEffectWarning, Revision, hookimpl
from lvlm_guard.fitting import Fitted, Track
from lvlm_guard_augmentation.claims import Level
from lvlm_guard_augmentation.picture_evidence import read_evidence, remember_tokens
from lvlm_guard_augmentation.revise import COLOURS, Revise
from lvlm_guard_augmentation.scoring import JudgedClaim, LevelRule, ScoringRules
from lvlm_guard_augmentation.thresholds import (
    ClaimExample,
    ThresholdOutcome,
    choose_object_thresholds,
    choose_value_thresholds,
    fit_weights,
)
from lvlm_guard_augmentation.true_pictures import PictureHabits, TruePicture, read_truth

TOLERANCE = 0.01
BATCH = 16
TOKENS = 64
STRATEGY = Revise(threshold=0.0, levels=("object", "attribute"))
Judged = list[JudgedClaim]


def fit_revise(
    model: Any,
    processor: Any,
    demonstrations: Any,
    track: Track = iter,
    *,
    strategy: Revise = STRATEGY,
    tolerance: float = TOLERANCE,
    batch: int = BATCH,
    tokens: int = TOKENS,
) -> Fitted:
    """Fit `weights [3, 4]` and `thresholds [3, 2]` for objects, attributes and relations, fp32.

    The model captions every picture, greedily. Each object that it names, and each other one that is labelled anywhere, is asked
    about as `revise` asks. A logistic regression of the truth on (1, said, margin, evidence) gives the weights; the thresholds
    are those with the fewest inventions among all at which the recall falls by at most `tolerance`, on pictures that keep and
    on pictures that break the habits of the data apart: an object without the one that goes with it most, in 60 % of its pictures or more; for
    values, an object with another than the one it has in 60 %. Relations are not fitted.

    Args:
        model: The model.
        processor: Its processor.
        demonstrations: Demonstrations, whose correct answers name everything that is there, or labelled pictures.
        track: Shows progress.
        strategy: Questions, words for values, levels, and evidence.
        tolerance: How far the recall of either half may fall.
        batch: Pictures captioned at a time.
        tokens: Length limit of captions.

    Raises:
        InputError: Nothing is labelled, or no caption names something that is not there.
    """
    pictures = read_truth(demonstrations, strategy.values or COLOURS)
    names = tuple(sorted({name for picture in pictures for name in picture.objects}))
    values = tuple(
        sorted({value for picture in pictures for of_object in picture.objects.values() for value in of_object})
    )
    rules_of_levels = {level: LevelRule(add=0.0) for level in strategy.levels}
    rules_asked = ScoringRules(rules_of_levels, names=names, values=values)
    judged = _weigh_captions(model, processor, pictures, rules_asked, strategy, track, batch, tokens)
    habits, with_evidence = PictureHabits.of(pictures), strategy.evidence is not None
    rules: dict[Level, LevelRule] = {}
    facts: dict[str, Any] = {}
    objects = _number(pictures, judged, lambda *entry: _list_objects(entry, habits, names))
    if all(judged_claim.true for judged_claim in objects if judged_claim.is_said):
        raise InputError("revise is fitted on captions with inventions, and these name nothing that is not there.")
    present = _count_present(pictures, habits)
    weights = fit_weights(objects, with_evidence=with_evidence)
    rules["object"], outcome = choose_object_thresholds(objects, weights, present, tolerance)
    facts["object"] = _describe(outcome, present)
    attributes = _number(pictures, judged, lambda *entry: _list_attributes(entry, habits))
    if "attribute" in strategy.levels and any(
        judged_claim.is_said and not judged_claim.true for judged_claim in attributes
    ):
        weights = fit_weights(attributes, with_evidence=with_evidence)
        rules["attribute"], outcome = choose_value_thresholds(attributes, weights, tolerance)
        facts["attribute"] = _describe(outcome, outcome.right_before)
    settings = {
        "levels": list(rules),
        "names": list(names),
        "values": list(values),
        "with_evidence": with_evidence,
        "tolerance": tolerance,
        "question": strategy.question,
        "calibration": facts,
    }
    return Fitted(ScoringRules(rules).to_tensors(), settings)


@dataclass(frozen=True, eq=False)
class CaptionWeigher:
    """Weighs the claims of captions as `revise` does, and changes nothing.

    Args:
        strategy: Questions and evidence.
        rules: Which levels are weighed, and which objects are asked for beside those of a caption.
        receive: Receives the claims of a row.
    """

    name: ClassVar[str] = "caption_weigher"

    strategy: Revise
    rules: ScoringRules
    receive: Callable[[Judged], None]

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Remember the image tokens where evidence is read off them."""
        if self.strategy.evidence is not None:
            yield remember_tokens(gen, self.strategy.evidence)

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Weigh the claims."""
        weigher = self.strategy.build_weigher(self.rules)
        evidence = read_evidence(gen, self.strategy.evidence)
        for row, ids in enumerate(gen.output_ids):
            text = str(gen.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            self.receive(weigher.weigh(gen, row, text, evidence[row]))
        return ()


def _weigh_captions(
    model: Any,
    processor: Any,
    pictures: Sequence[TruePicture],
    rules: ScoringRules,
    strategy: Revise,
    track: Track,
    batch: int,
    tokens: int,
) -> list[Judged]:
    """Return the claims of the model's captions, picture by picture."""
    judged: list[Judged] = []
    guard = Guard(model, processor, [CaptionWeigher(strategy, rules, judged.append)])
    for start in track(range(0, len(pictures), batch)):
        messages = [_write_message(picture) for picture in pictures[start : start + batch]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # it only watches
            guard.generate(**guard.inputs(messages=messages), max_new_tokens=tokens, do_sample=False)
    return judged


def _write_message(picture: TruePicture) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture.picture}, {"type": "text", "text": picture.prompt}]
    return [{"role": "user", "content": content}]


def _number(
    pictures: Sequence[TruePicture],
    judged: Sequence[Judged],
    list_examples: Callable[[TruePicture, Judged], list[ClaimExample]],
) -> list[ClaimExample]:
    """Return the examples of all pictures, with the numbers of these."""
    return [
        dataclasses.replace(judged_claim, picture=number)
        for number, (picture, claims) in enumerate(zip(pictures, judged, strict=True))
        for judged_claim in list_examples(picture, claims)
    ]


def _list_objects(entry: tuple[TruePicture, Judged], habits: PictureHabits, names: Sequence[str]) -> list[ClaimExample]:
    """Return the objects of one picture that are labelled anywhere, each once."""
    picture, claims = entry
    breaks = habits.is_broken_by(picture)
    by_name = {
        judged_claim.claim.subject: judged_claim
        for judged_claim in claims
        if judged_claim.claim.level == "object" and judged_claim.claim.subject in names
    }
    return [
        ClaimExample(
            0, judged_claim.is_said, judged_claim.margin, judged_claim.evidence, name in picture.objects, breaks
        )
        for name, judged_claim in by_name.items()
    ]


def _list_attributes(entry: tuple[TruePicture, Judged], habits: PictureHabits) -> list[ClaimExample]:
    """Return the values of objects that are there and have labelled ones."""
    picture, claims = entry
    return [
        ClaimExample(
            0,
            judged_claim.is_said,
            judged_claim.margin,
            judged_claim.evidence,
            judged_claim.claim.value in picture.objects[judged_claim.claim.subject],
            habits.is_untypical(picture, judged_claim.claim.subject),
            judged_claim.claim.subject,
        )
        for judged_claim in claims
        if judged_claim.claim.level == "attribute" and picture.objects.get(judged_claim.claim.subject)
    ]


def _count_present(pictures: Sequence[TruePicture], habits: PictureHabits) -> tuple[int, int]:
    """Return how many objects are in pictures that keep habits, and in those that break them."""
    broken = [habits.is_broken_by(picture) for picture in pictures]
    counts = [
        sum(len(each.objects) for each, is_broken in zip(pictures, broken, strict=True) if is_broken == half)
        for half in (False, True)
    ]
    return counts[0], counts[1]


def _describe(outcome: ThresholdOutcome, of: tuple[int, int]) -> dict[str, Any]:
    """Return what the thresholds did on the data, as the manifest keeps it."""
    return {
        "wrong_before": outcome.wrong_before,
        "wrong": outcome.wrong,
        "right_before": list(outcome.right_before),
        "right": list(outcome.right),
        "of": list(of),
    }
