"""What a diagnosis of an answer says: a number for every word, causes in words, and pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from lvlm_guard.diagnosis.verdict import Culprit, Diagnosis
from lvlm_guard.errors import InputError, quote

CauseName: TypeAlias = Literal["weak evidence", "prior", "model fault", "decoding", "unknown"]
FORMAT = "lvlm-guard answer diagnosis"
VERSION = 1
PLAIN = ("prompt", "answer", "answered_by", "model", "stack", "threshold", "partial", "cost", "origin")
"""Fields of a diagnosis that are plain values."""


@dataclass(frozen=True)
class Cause:
    """Something that may have led to a doubtful word.

    Args:
        name: `weak evidence`, `prior`, `model fault`, `decoding` or `unknown`.
        because: What speaks for it, with its numbers.
    """

    name: CauseName
    because: str


@dataclass(frozen=True)
class WordDiagnosis:
    """One word of an answer. Log-probabilities are in nats, and sums over its tokens; None is what was not measured.

    Args:
        text: The word.
        span: First and last character in the answer, the latter excluded.
        first_token: The token that it begins in.
        tokens: How many it takes.
        level: `object`, `attribute`, `number` or `relation`; None for words that say nothing of these.
        question: What the model was asked about it.
        doubt: In [0, 1].
        by: What the doubt goes by: `margin` of the question, or `entropy` where the word cannot be asked about.
        is_doubtful: Whether the doubt reaches the threshold, and the word means something by itself.
        margin: How far the model leans to yes.
        log_probability: Of the word, behind the words before it.
        entropy: Where its first token was chosen.
        max_probability: The greatest probability there.
        choice: What the model would have said there.
        is_choice: Whether each token of the word was the likeliest.
        image_free_log_probability: Of the word without the image.
        image_free_choice: What the model would have said there without the image.
        is_image_free_choice: Whether each token was the likeliest without the image too.
        evidence: Log-odds that a fitted head reads off the picture's tokens.
        image_attention: Share of attention on the image where its first token was chosen, the mean over heads and layers.
        causes: Of a doubtful word, at least one; none of another.
    """

    text: str
    span: tuple[int, int]
    first_token: int
    tokens: int
    level: str | None
    question: str | None
    doubt: float
    by: str
    is_doubtful: bool
    margin: float | None
    log_probability: float
    entropy: float
    max_probability: float
    choice: str
    is_choice: bool
    image_free_log_probability: float | None = None
    image_free_choice: str | None = None
    is_image_free_choice: bool | None = None
    evidence: float | None = None
    image_attention: float | None = None
    causes: tuple[Cause, ...] = ()

    @property
    def log_ratio(self) -> float | None:
        """How much likelier the picture makes the word, in nats."""
        free = self.image_free_log_probability
        return None if free is None else self.log_probability - free

    def to_verdict(self) -> Diagnosis:
        """Return the word as a verdict of the published schema: no component is named from one picture."""
        is_forced = any(cause.name == "decoding" for cause in self.causes)
        culprit = Culprit("decoding", "decoding") if is_forced else Culprit("unknown", "unknown")
        figures = {
            name: value
            for name in ("doubt", "margin", "entropy", "max_probability", "log_ratio", "evidence", "image_attention")
            if (value := getattr(self, name)) is not None
        }
        return Diagnosis(
            culprit, evidence={**figures, "causes": [asdict(cause) for cause in self.causes]}, span=self.span
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, the log-ratio among them."""
        return {**asdict(self), "span": list(self.span), "log_ratio": self.log_ratio}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WordDiagnosis:
        """Return the word of what `to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        plain = {name: values[name] for name in cls.__dataclass_fields__}
        start, end = plain["span"]
        causes = tuple(Cause(cause["name"], cause["because"]) for cause in plain["causes"])
        return cls(**{**plain, "span": (start, end), "causes": causes})


@dataclass(frozen=True)
class AnswerMaps:
    """Pictures to look at: none of them is a verdict.

    Args:
        grid: Rows and columns of the image tokens in the picture; zeros where they fill no known grid.
        attention: By layer, the share of each head's attention on the image, the mean over the words about the picture.
        attended: By number of a word, attention to each image token, the mean over heads and layers.
        lens: By number of a word, for each layer output from 0 (what enters the decoder), the probability of the word's first token
            at each image token by the logit lens.
        occlusion_grid: Rows and columns of the cells that were covered.
        occlusion: By number of a word, how many nats its log-probability falls where each cell is covered.
    """

    grid: tuple[int, int] = (0, 0)
    attention: tuple[tuple[float, ...], ...] = ()
    attended: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    lens: Mapping[int, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    occlusion_grid: tuple[int, int] = (0, 0)
    occlusion: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def presence(self, word: int) -> tuple[float, ...]:
        """Return for each layer output the greatest probability of a word at any image token."""
        return tuple(max(layer, default=0.0) for layer in self.lens.get(word, ()))


@dataclass(frozen=True)
class AnswerDiagnosis:
    """What a diagnosis of an answer says.

    Args:
        prompt: The question.
        answer: The answer as its tokens read.
        answered_by: `model` where the model wrote it, `caller` where it was passed.
        model: Name of the model.
        stack: Strategies that the model was guarded with.
        threshold: Doubt from which a word is doubtful.
        words: Every word.
        maps: Pictures to look at; None where none were asked for.
        partial: What could not be looked at, a sentence each.
        cost: What ran, by name.
        origin: Versions.
        pictures: The pictures as PIL, for reports; not among the plain values.
        model_view: The one picture as the model's processor cut it, where the pixels tell; else None.
    """

    prompt: str
    answer: str
    answered_by: str
    model: str
    stack: tuple[str, ...]
    threshold: float
    words: tuple[WordDiagnosis, ...]
    maps: AnswerMaps | None = None
    partial: tuple[str, ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    model_view: Any = field(default=None, repr=False, compare=False)

    @property
    def doubtful(self) -> tuple[WordDiagnosis, ...]:
        """The doubtful words, the most doubtful first."""
        return tuple(sorted((word for word in self.words if word.is_doubtful), key=lambda word: -word.doubt))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; doubtful words stand under `verdicts` as the published schema has them."""
        values = {name: getattr(self, name) for name in PLAIN}
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            "words": [word.to_dict() for word in self.words],
            "verdicts": [word.to_verdict().to_dict() for word in self.words if word.is_doubtful],
            "maps": None if self.maps is None else _describe_maps(self.maps),
        }


def read_diagnosis(values: Mapping[str, Any], pictures: tuple[Any, ...]) -> AnswerDiagnosis:
    """Return the diagnosis of what its `to_dict` returned, without its maps.

    Args:
        values: From the JSON of a report.
        pictures: The pictures as PIL.

    Raises:
        InputError: It is no diagnosis of an answer, or one of another version.
    """
    if (kind := (values.get("format"), values.get("version"))) != (FORMAT, VERSION):
        raise InputError(f"This is no diagnosis of an answer that can be read: {quote(kind)}.")
    try:
        plain: dict[str, Any] = {name: values[name] for name in PLAIN}
        plain |= {name: tuple(plain[name]) for name in ("stack", "partial")}
        words = tuple(WordDiagnosis.from_dict(word) for word in values["words"])
        return AnswerDiagnosis(**plain, words=words, pictures=pictures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"This is no diagnosis of an answer that can be read: {quote(str(error))}.") from error


def _describe_maps(maps: AnswerMaps) -> dict[str, Any]:
    by_word = ("attended", "lens", "occlusion")
    values = {name: value for name, value in asdict(maps).items() if name not in by_word}
    return values | {name: {str(word): map_ for word, map_ in getattr(maps, name).items()} for name in by_word}
