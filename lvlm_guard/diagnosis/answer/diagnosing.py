"""Diagnose an answer: a doubt for every word with the figures behind it, causes in words, and pictures to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_guard.call.provenance import describe_origin
from lvlm_guard.diagnosis.answer.causes import find_causes
from lvlm_guard.diagnosis.answer.forcing import (
    AnswerRequest,
    ScoredAnswer,
    bound_length,
    read_answer,
    score_answer,
    write_answer,
)
from lvlm_guard.diagnosis.answer.mapping import draw_maps
from lvlm_guard.diagnosis.answer.model_view import restore_view
from lvlm_guard.diagnosis.answer.recording import Feature
from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis, WordDiagnosis
from lvlm_guard.diagnosis.verdict import Diagnosis
from lvlm_guard.errors import InputError, ProcessorNeeded, quote
from lvlm_guard.guard import Guard
from lvlm_guard.request.picture_loading import read_picture

MOST_TOKENS = 5000
"""Tokens of an answer that are looked at; what is longer is cut."""
THRESHOLD = 0.5
MOST_CELLS = 32
_FUNCTION_WORDS = """
a an the this that these those it its he she they we you i him her them his their our your my one
some any each every and or but nor so yet if then than as while when where which who whom whose what
how why because although though of in on at by for with from to into onto over under above below
between behind beside near off out up down about around is are was were be been being am has have
had do does did can could may might must shall should will would not no yes there here also very
just only both other another such same more most
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say nothing by themselves: never doubtful where only entropy speaks, since it is a doubt about what comes next."""


@dataclass(frozen=True)
class DiagnosisSettings:
    """How an answer is diagnosed.

    Args:
        threshold: Doubt from which a word is doubtful, in [0, 1].
        artefact: File made by `lvlm-guard fit evidence`, for patch evidence; or None.
        fault: A diagnosis of the model, or None.
        maps: Whether there are pictures to look at.
        cells: Cells along each side that are covered in turn for occlusion; 0 covers none.
        doubt: Parameters of the strategy `doubt`.
        watch: Called with what runs next.
        track: Goes round the longest loop, and shows progress.
        name: What the model is called; None is what its config says.
    """

    threshold: float = THRESHOLD
    artefact: Path | None = None
    fault: Diagnosis | None = None
    maps: bool = True
    cells: int = 6
    doubt: Mapping[str, Any] | None = None
    watch: Callable[[str], None] = lambda _: None
    track: Callable[[Any], Any] = iter
    name: str | None = None


def diagnose_answer(
    subject: Any,
    pictures: Any,
    prompt: str,
    *,
    processor: Any = None,
    answer: str | None = None,
    max_new_tokens: int = 128,
    generate: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AnswerDiagnosis:
    """Say which words of an answer can be trusted, and what is known of why the others were said.

    ```python
    diagnosis = diagnose_answer(guard, "kitchen.png", "Describe this image.")
    for word in diagnosis.doubtful:
        print(word.text, word.doubt, [cause.because for cause in word.causes])
    ```

    The answer is said again, token by token, under the guard's own stack, and what the model thinks of every word is kept; then it
    is asked about each word that says something about the picture. The model is as it was afterwards.

    Args:
        subject: A guard, or a model, for which a guard without strategies is made.
        pictures: The picture, or a list of pictures: PIL, paths or arrays.
        prompt: The question.
        processor: The model's processor, where `subject` is a model.
        answer: The answer; without it the model's own, greedy unless `generate` says otherwise.
        max_new_tokens: The longest own answer.
        generate: Further arguments of generate for the own answer.
        **settings: Fields of `DiagnosisSettings`; `model_diagnosis` takes a diagnosis, its values or its file in place of `fault`.

    Raises:
        InputError: No picture, one that cannot be read, an empty answer, or one that does not survive its tokens; or a setting
            that cannot be used.
        ProcessorNeeded: There is no processor.
        Refused: The guard's stack cannot run on this request.
    """
    chosen = read_settings(settings)
    request = open_request(subject, processor, pictures, prompt)
    chosen.watch("answer")
    written = answer is None
    if answer is None:
        own_settings = {"do_sample": False, **(generate or {})}
        ids = write_answer(request, _check_length(max_new_tokens), own_settings)
    else:
        ids = read_answer(request.tokenizer, answer)
    diagnosis = _diagnose(request, ids, chosen)
    return replace(diagnosis, answered_by="model" if written else "caller")


def read_settings(settings: Mapping[str, Any]) -> DiagnosisSettings:
    """Return checked settings.

    Raises:
        InputError: One of them is unknown, or cannot be used.
    """
    values = dict(settings)
    if "model_diagnosis" in values:
        values["fault"] = read_fault(values.pop("model_diagnosis"))
    if unknown := sorted(values.keys() - DiagnosisSettings.__dataclass_fields__.keys()):
        raise InputError(
            f"diagnose_answer has no setting {unknown[0]!r}. Known: {', '.join(DiagnosisSettings.__dataclass_fields__)}."
        )
    chosen = DiagnosisSettings(**values)
    if not isinstance(chosen.threshold, (int, float)) or not 0 <= chosen.threshold <= 1:
        raise InputError(f"threshold is a number in [0, 1], got {quote(chosen.threshold)}.")
    if isinstance(chosen.cells, bool) or not isinstance(chosen.cells, int) or not 0 <= chosen.cells <= MOST_CELLS:
        raise InputError(f"cells is a whole number from 0 to {MOST_CELLS}, got {quote(chosen.cells)}.")
    return chosen


def read_fault(source: Any) -> Diagnosis | None:
    """Return the diagnosis of a model: itself, or what its values or its JSON file say.

    Raises:
        InputError: It cannot be read, or is none.
    """
    if source is None or isinstance(source, Diagnosis):
        return source
    if isinstance(source, Mapping):
        return Diagnosis.from_dict(source)
    try:
        values = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{quote(source)} is no diagnosis of a model that can be read: {error}.") from error
    return Diagnosis.from_dict(values)


def open_request(subject: Any, processor: Any, pictures: Any, prompt: str) -> AnswerRequest:
    """Return what is asked.

    Raises:
        InputError: There is no picture, or it cannot be read; or no question.
        ProcessorNeeded: There is no processor.
    """
    guard = subject if isinstance(subject, Guard) else Guard(subject, processor, None)
    if guard.processor is None:
        raise ProcessorNeeded("diagnose_answer needs the processor: Guard(model, processor), or processor=.")
    several = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    if not several or any(picture is None for picture in several):
        raise InputError(
            "diagnose_answer needs a picture: an answer about no picture has nothing to be checked against."
        )
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("diagnose_answer needs a question: prompt is empty.")
    return AnswerRequest(guard, tuple(read_picture(picture) for picture in several), prompt)


def _check_length(tokens: int) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MOST_TOKENS:
        raise InputError(f"max_new_tokens is a whole number from 1 to {MOST_TOKENS}, got {quote(tokens)}.")
    return tokens


def _diagnose(request: AnswerRequest, ids: list[int], settings: DiagnosisSettings) -> AnswerDiagnosis:
    """Return the diagnosis of an answer by its tokens."""
    partial: list[str] = []
    ids = _cut(request, ids, partial)
    settings.watch("words")
    features: set[Feature] = {"image-free branch"}
    features |= {"attention"} if settings.maps and len(request.pictures) == 1 else set()
    features |= {"patch evidence"} if settings.artefact is not None else set()
    doubt = {"ask": True, **(settings.doubt or {})}
    scored = score_answer(request, ids, frozenset(features), settings.artefact, doubt)
    partial += [f"No {feature}: {reason}" for feature, reason in scored.refused.items()]
    partial += [
        f"{name!r} chose or revised the answer; its words are judged without it." for name in request.split_stack()[1]
    ]
    if not scored.doubts["words"]:
        raise InputError(
            f"The answer has no words: {scored.doubts['text'][:80]!r}. Pass one with words, or another prompt."
        )
    if scored.doubts["not_asked"]:
        partial.append(f"Not all words were asked about: {scored.doubts['not_asked']}")
    words = tuple(_judge(request, entry, ids, scored, settings) for entry in scored.doubts["words"])
    maps = draw_maps(request, ids, words, scored, settings.cells, partial, settings) if settings.maps else None
    return AnswerDiagnosis(
        request.prompt,
        scored.doubts["text"],
        "model",
        settings.name or _name(request.guard.model),
        request.guard.stack.names,
        settings.threshold,
        words,
        maps,
        tuple(partial),
        _count_cost(ids, scored, maps),
        asdict(describe_origin(request.guard.model.config)),
        request.pictures,
        restore_view(request) if len(request.pictures) == 1 else None,
    )


def _cut(request: AnswerRequest, ids: list[int], partial: list[str]) -> list[int]:
    """Return the tokens that are looked at, and note where some are not.

    Raises:
        InputError: There are none.
    """
    if not ids:
        raise InputError("The model answered nothing, so there are no words: pass another prompt, or an answer.")
    prompt = request.inputs["input_ids"].shape[1]
    room = bound_length(request, prompt, MOST_TOKENS)
    if len(ids) > room:
        partial.append(f"The answer has {len(ids)} tokens; the first {room} are looked at.")
    return ids[:room]


def _judge(
    request: AnswerRequest,
    entry: Mapping[str, Any],
    ids: Sequence[int],
    scored: ScoredAnswer,
    settings: DiagnosisSettings,
) -> WordDiagnosis:
    """Return one word with all of its figures."""
    record, first = scored.record, entry["first_token"]
    span = range(first, first + entry["tokens"])
    main = [record.tokens[token] for token in span]
    free = [record.image_free[token] for token in span] if record.image_free else []
    is_told = entry["by"] == "margin" or entry["text"].lower() not in FUNCTION_WORDS
    word = WordDiagnosis(
        text=entry["text"],
        span=(entry["start"], entry["end"]),
        first_token=first,
        tokens=entry["tokens"],
        level=entry["level"],
        question=entry["question"],
        doubt=entry["doubt"],
        by=entry["by"],
        is_doubtful=is_told and entry["doubt"] >= settings.threshold,
        margin=entry["margin"],
        log_probability=float(sum(values[0] for values in main)),
        entropy=float(main[0][1]),
        max_probability=float(main[0][2]),
        choice=_decode(request, main[0][3]),
        is_choice=all(int(values[3]) == ids[token] for token, values in zip(span, main, strict=True)),
        image_free_log_probability=float(sum(values[0] for values in free)) if free else None,
        image_free_choice=_decode(request, free[0][3]) if free else None,
        is_image_free_choice=all(int(v[3]) == ids[token] for token, v in zip(span, free, strict=True))
        if free
        else None,
        evidence=_read_evidence(record.evidence, entry),
        image_attention=_mean_attention(record.masses, first),
    )
    return replace(word, causes=find_causes(word, settings.fault)) if word.is_doubtful else word


def _decode(request: AnswerRequest, token: Any) -> str:
    return str(request.tokenizer.decode([int(token)], skip_special_tokens=False)).strip()


def _read_evidence(evidence: Any, entry: Mapping[str, Any]) -> float | None:
    """Return the log-odds of what a word claims; None where the head does not know."""
    if evidence is None or entry["level"] is None:
        return None
    subject, value, direction, reference = entry["claim"]
    odds: float | None = None
    if entry["level"] == "object":
        odds = evidence.existence(subject)
    elif entry["level"] == "attribute":
        odds = evidence.attribute(subject, value)
    elif entry["level"] == "relation":
        odds = evidence.relation(subject, direction, reference)
    return None if odds is None or not math.isfinite(odds) else float(odds)


def _mean_attention(masses: Mapping[int, Sequence[Any]], token: int) -> float | None:
    """Return the share of attention on the image where a token was chosen, the mean over heads and layers."""
    means = [float(values[token].mean()) for values in masses.values()]
    return sum(means) / len(means) if means else None


def _name(model: Any) -> str:
    name = getattr(model.config, "name_or_path", None)
    return str(name or type(model).__name__)


def _count_cost(ids: Sequence[int], scored: ScoredAnswer, maps: Any) -> dict[str, Any]:
    """Return what ran."""
    questions = {entry["question"] for entry in scored.doubts["words"] if entry["margin"] is not None}
    return {
        "tokens": len(ids),
        "questions": len(questions),
        "branches": int(bool(scored.record.image_free)),
        "covered cells": 0 if maps is None else math.prod(maps.occlusion_grid),
    }
