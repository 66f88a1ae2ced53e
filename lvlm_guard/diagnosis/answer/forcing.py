"""Runs of a guarded model that is made to say one answer: what it thinks of every token of it, behind the ones before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lvlm_guard import anatomy
from lvlm_guard.diagnosis.answer.recording import FEATURES, AnswerRecord, AnswerRecorder, Feature, ForcedTokens
from lvlm_guard.errors import GuardError, InputError
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import is_marked
from lvlm_guard.outputs import sequences
from lvlm_guard.strategy.names import strategy_name

FORCED = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None}
DOUBT = "doubt"


@dataclass(frozen=True, eq=False)
class AnswerRequest:
    """What was asked, and of whom.

    Args:
        guard: The guarded model.
        pictures: The pictures, as PIL.
        prompt: The question.
    """

    guard: Guard
    pictures: tuple[Any, ...]
    prompt: str

    @cached_property
    def inputs(self) -> Any:
        """The model inputs, prepared once: its pictures may be large, and many runs need them."""
        return self.guard.inputs(images=list(self.pictures), messages=self._write(len(self.pictures)))

    def encode(self, pictures: Sequence[Any]) -> Any:
        """Return model inputs with a row for each of some pictures in place of the one that it has."""
        return self.guard.inputs(images=list(pictures), messages=[self._write(1) for _ in pictures])

    def _write(self, pictures: int) -> list[dict[str, Any]]:
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return getattr(self.guard.processor, "tokenizer", self.guard.processor)

    def split_stack(self) -> tuple[list[Any], list[str]]:
        """Return the strategies under which tokens can be forced, and the names of those that choose or revise answers themselves."""
        strategies = [strategy for strategy in self.guard.stack if strategy_name(strategy) != DOUBT]
        is_loop = [
            any(is_marked(getattr(strategy, hook, None)) for hook in ("search", "finish")) for strategy in strategies
        ]
        pairs = list(zip(strategies, is_loop, strict=True))
        return [each for each, loops in pairs if not loops], [strategy_name(each) for each, loops in pairs if loops]


@dataclass(frozen=True, eq=False)
class ScoredAnswer:
    """What a forced run gave.

    Args:
        record: What was kept of each token.
        doubts: The doubts of the words, as `doubt` leaves them in a report.
        features: What was kept beside the probabilities.
        refused: Why the other features were not.
    """

    record: AnswerRecord
    doubts: Mapping[str, Any]
    features: frozenset[Feature]
    refused: Mapping[Feature, str]


def force(guard: Guard, batch: Any, ids: Sequence[int]) -> None:
    """Make a guarded model say an answer in every row.

    Raises:
        InputError: It ended early.
    """
    processors = [ForcedTokens(ids)]
    output = guard.generate(**batch, **FORCED, max_new_tokens=len(ids), logits_processor=processors)
    count = sequences(output).shape[1] - guard.report.answer_start
    if count != len(ids):
        raise InputError(
            f"The model stopped after {count} of the {len(ids)} tokens of the answer: leave tokens that end an answer out of it."
        )


def score_answer(
    request: AnswerRequest,
    ids: Sequence[int],
    features: frozenset[Feature],
    artefact: Path | None,
    doubt: Mapping[str, Any],
) -> ScoredAnswer:
    """Run an answer once, and keep what each word and token of it is thought of.

    Attention and the image-free branch are tried apart where something is refused, and left out with the reason.

    Args:
        request: What was asked.
        ids: The tokens of the answer.
        features: What is kept beside the probabilities.
        artefact: A fitted head.
        doubt: Parameters of `doubt`.
    """
    try:
        return _score(request, ids, features, artefact, doubt)
    except GuardError:
        if not features:
            raise
    refused = {
        feature: reason
        for feature in FEATURES
        if feature in features
        if (reason := _try(request, ids, feature, artefact))
    }
    if not refused:  # they do not go together
        refused = dict.fromkeys(features, "It does not go together with the others.")
    scored = _score(request, ids, features - refused.keys(), artefact, doubt)
    return replace(scored, refused=refused)


def _try(request: AnswerRequest, ids: Sequence[int], feature: Feature, artefact: Path | None) -> str:
    """Return why one feature cannot be had, empty where it can.

    Raises:
        GuardError: It is patch evidence, which somebody asked for by naming a file.
    """
    try:
        _run(request, ids[:1], frozenset({feature}), artefact, [])
    except GuardError as error:
        if feature == "patch evidence":
            raise
        return str(error)
    return ""


def _score(
    request: AnswerRequest,
    ids: Sequence[int],
    features: frozenset[Feature],
    artefact: Path | None,
    doubt: Mapping[str, Any],
) -> ScoredAnswer:
    record, report = _run(request, ids, features, artefact, [{"name": DOUBT, "params": dict(doubt)}])
    return ScoredAnswer(record, report.results[DOUBT][0], features, {})


def _run(
    request: AnswerRequest, ids: Sequence[int], features: frozenset[Feature], artefact: Path | None, more: list[Any]
) -> tuple[AnswerRecord, Any]:
    record = AnswerRecord()
    recorder = AnswerRecorder(tuple(ids), record, features, artefact)
    guard = request.guard.using([*request.split_stack()[0], *more, recorder])
    force(guard, request.inputs, ids)
    return record, guard.report


def write_answer(request: AnswerRequest, most: int, settings: Mapping[str, Any]) -> list[int]:
    """Return the tokens of the guarded model's own answer, without what ends it.

    Args:
        request: What was asked.
        most: The greatest number of tokens.
        settings: Further arguments of generate.
    """
    output, report = request.guard.generate_with_report(**request.inputs, max_new_tokens=most, **settings)
    ids = sequences(output)[0, report.answer_start if report is not None else 0 :].tolist()
    ends = find_ends(request.guard.model)
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def find_ends(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer."""
    settings = getattr(model, "generation_config", None)
    tokens = getattr(settings, "eos_token_id", None)
    return frozenset(tokens if isinstance(tokens, list) else () if tokens is None else (tokens,))


def read_answer(tokenizer: Any, answer: str) -> list[int]:
    """Return the tokens of an answer that was passed as text.

    Raises:
        InputError: It is empty, or its tokens read otherwise.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise InputError("The answer is empty: leave it out to diagnose the model's own, or pass its text.")
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    if _fold(text) != _fold(answer):
        raise InputError(
            f"The answer does not survive its tokens: {answer[:200]!r} is read back as {text[:200]!r}. Leave out what the tokenizer does "
            "not know."
        )
    return ids


def _fold(text: str) -> str:
    """Return a text without spaces and capitals, which some tokenizers do not keep."""
    return "".join(text.split()).casefold()


def bound_length(request: AnswerRequest, prompt: int, most: int) -> int:
    """Return how many tokens of an answer fit: `most`, or what the positions of the decoder leave behind the prompt."""
    limit = anatomy.maximum_length(request.guard.model.config)
    return most if limit is None else max(min(most, limit - prompt), 1)
