"""Remedies tried on one question: what each makes of the answer, and what it made of questions like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.bench.running.manifest import DECODING
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.margins import MarginRecorder, Tokens
from lvlm_guard.errors import GuardError
from lvlm_guard.guard import Guard
from lvlm_guard.host.stack import Stack
from lvlm_guard.outputs import sequences
from lvlm_guard.tuning.answering import TunedModel
from lvlm_guard.tuning.remedies import CaseRow, RemedyProposal, RemedyTable

NOTHING_HELPED = "No remedy helped."
NEIGHBOURS = 10
"""Calibration items of about the same margin that are shown beside a question."""


@dataclass(frozen=True)
class Attempt:
    """One remedy on one question.

    Args:
        proposal: The remedy, and what it did to calibration items.
        before: The plain answer.
        after: The remedy's; empty where it refused.
        neighbours: Calibration items nearest in margin.
        refusal: Why it could not answer; empty where it could.
    """

    proposal: RemedyProposal
    before: str
    after: str
    neighbours: Sequence[CaseRow]
    refusal: str = ""

    @property
    def changed(self) -> bool:
        """Whether the answer is another one."""
        return not self.refusal and self.after.strip().lower() != self.before.strip().lower()

    @property
    def cured(self) -> int:
        """Neighbours that were wrong and that it made right."""
        return sum(not row.right and row.answers[self.proposal.name][1] for row in self.neighbours)

    @property
    def broken(self) -> int:
        """Neighbours that were right and that it made wrong."""
        return sum(row.right and not row.answers[self.proposal.name][1] for row in self.neighbours)

    @property
    def helps(self) -> bool:
        """Whether it changed the answer, cured more neighbours than it broke, and more of them than leaning to an answer did."""
        return self.changed and self.cured > self.broken and self.proposal.beats_control


@dataclass(frozen=True)
class RemedyTrial:
    """What remedies made of one question.

    Args:
        plain: The plain answer.
        margin: The size of its margin between yes and no; None where it has none.
        attempts: The remedies that were tried, in the order they were proposed.
    """

    plain: str
    margin: float | None
    attempts: Sequence[Attempt]

    @property
    def best(self) -> Attempt | None:
        """The first remedy that helps; None where none does."""
        return next((attempt for attempt in self.attempts if attempt.helps), None)


def try_remedies(
    table: RemedyTable,
    subject: TunedModel,
    picture: Image.Image,
    prompt: str,
    level: str,
    *,
    count: int = 3,
    max_new_tokens: int = 16,
) -> RemedyTrial:
    """Answer a question plainly, then with the remedies that cured most questions like it.

    Args:
        table: What remedies did to calibration items of this model.
        subject: The model.
        picture: The picture.
        prompt: The question.
        level: Its level.
        count: Most remedies.
        max_new_tokens: Length of the answers.

    Raises:
        InputError: The table is of another model, or has no item of that level.
        Refused: Plain generate cannot answer.
    """
    table.check_model(subject.model)
    question = _Question(subject, picture, prompt, max_new_tokens)
    plain, margin = question.answer(Stack())
    attempts = []
    for proposal in table.propose(level, margin, count):
        neighbours = [row for row in table.find_neighbours(level, margin, NEIGHBOURS) if proposal.name in row.answers]
        try:
            after, refusal = question.answer(Stack.of([dict(entry) for entry in proposal.entries]))[0], ""
        except GuardError as error:
            after, refusal = "", f"{type(error).__name__}: {error}"
        attempts.append(Attempt(proposal, plain, after, neighbours, refusal))
    return RemedyTrial(plain, margin, attempts)


@dataclass(frozen=True)
class _Question:
    """A question about a picture, put to one model."""

    subject: TunedModel
    picture: Image.Image
    prompt: str
    max_new_tokens: int

    def answer(self, stack: Stack) -> tuple[str, float | None]:
        """Return the answer of a stack, and the size of its margin."""
        guard = Guard(self.subject.model, self.subject.processor, stack)
        tokenizer = getattr(self.subject.processor, "tokenizer", self.subject.processor)
        tokens = Tokens.of(tokenizer)
        recorder = None if tokens is None else MarginRecorder(tokens)
        output = sequences(
            guard.generate(
                **guard.inputs(messages=[self._write()]),
                **DECODING[GREEDY],
                max_new_tokens=self.max_new_tokens,
                logits_processor=[] if recorder is None else [recorder],
            )
        )
        text = tokenizer.decode(output[0, guard.report.answer_start :], skip_special_tokens=True)
        margin = None if recorder is None else recorder.margins(1)[0]
        asks = text.strip().lower().startswith(("yes", "no"))
        return text, abs(margin) if margin is not None and asks else None

    def _write(self) -> list[Mapping[str, Any]]:
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]
