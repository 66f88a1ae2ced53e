"""Search stacks on calibration items: the front of quality and cost among those within the budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import Level
from lvlm_guard.bench.reporting.level_verdicts import CAPTIONS
from lvlm_guard.bench.running.choosing import load_measures
from lvlm_guard.bench.scoring.intervals import FEWEST
from lvlm_guard.errors import GuardError, Refused
from lvlm_guard.host.plugins import is_marked
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.answering import AnswerCache, StackReply
from lvlm_guard.tuning.candidates import Entries
from lvlm_guard.tuning.costs import AnswerCost, CostModel, CostSketch, count_steps, measure_cost
from lvlm_guard.tuning.objectives import Gain, Objectives, Quality, find_objectives
from lvlm_guard.tuning.records import FINISHED, NAMES_LESS, OVER_BUDGET, REFUSED, WEAK, TrialBook, TrialRecord
from lvlm_guard.tuning.sampling import Proposal, Sampler, list_values
from lvlm_guard.tuning.splits import Split

FIRST = 1 / 3
"""Share of the pictures that every trial is asked about first."""

PEERS = 8
"""Trials that must have answered the first items before a weak one is given up for being below their median."""

UNCOUNTED = ("search", "finish")
"""Hooks that run the model beside the forwards that a run counts, so that the clock has a say in the cost."""

ROUNDING = 1e-9

Track = Callable[[Iterable[int]], Iterable[int]]
"""Shows how far a loop is."""


@dataclass(frozen=True)
class Baseline:
    """Plain generate on the calibration items.

    Args:
        first: Its answers to the first items.
        whole_reply: Its answers to all of them.
        objectives: What decides.
        costs: What stacks cost beside it.
    """

    first: StackReply
    whole_reply: StackReply
    objectives: Objectives
    costs: CostModel

    @property
    def quality(self) -> Quality:
        """Its scores."""
        return self.objectives.score(self.whole_reply.answers)


@dataclass(frozen=True)
class Judgement:
    """What is decided of a trial."""

    state: str
    reason: str = ""
    quality: Quality | None = None
    gain: Gain | None = None
    first_gain: float | None = None
    cost: AnswerCost | None = None


@dataclass(frozen=True)
class Searcher:
    """Searches stacks for one model.

    Args:
        cache: Answers that were paid for.
        split: The calibration items.
        levels: Levels that count.
        budget: Most forward-equivalents of an answer; 1 is plain generate.
        sampler: Proposes stacks.
        allow: Functions that stacks may name.
    """

    cache: AnswerCache
    split: Split
    levels: tuple[Level, ...]
    budget: float
    sampler: Sampler
    allow: Collection[str] = ()

    @property
    def parts(self) -> tuple[Split, Split]:
        """The first items, and the others."""
        clusters = self.split.clusters
        count = min(max(round(FIRST * len(clusters)), FEWEST), len(clusters))
        return self.split.select(clusters[:count]), self.split.select(clusters[count:])

    def measure_plain(self) -> Baseline:
        """Let plain generate answer all calibration items.

        Raises:
            Refused: It cannot.
            InputError: Nothing is measured at these levels.
        """
        first, remainder = (self._answer(Stack(), part, label) for part, label in zip(self.parts, LABELS, strict=True))
        if first.refusal or remainder.refusal:
            raise Refused(f"Plain generate cannot answer the calibration items: {first.refusal or remainder.refusal}")
        reply = first.join(remainder)
        measures = load_measures(self.split.choice.suite, self.split.choice.parser, self.cache.subject.data)
        processor = self.cache.subject.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        prompts = [item.prompt for item in self.split.items]
        costs = CostModel.of(self.cache.subject.model, tokenizer, prompts)
        return Baseline(first, reply, find_objectives(measures, self.levels, reply.answers), costs)

    def _answer(self, stack: Stack, part: Split, label: str) -> StackReply:
        return self.cache.answer(stack, part, label) if part.items else StackReply((), ())

    def search(self, book: TrialBook, baseline: Baseline, trials: int, track: Track = iter) -> list[TrialRecord]:
        """Do trials until there are so many, going on with those of the book.

        Args:
            book: Where trials are kept.
            baseline: Plain generate.
            trials: How many there are in the end.
            track: Shows how far it is.
        """
        records = book.read()
        for number in track(range(len(records), trials)):
            proposal = self.sampler.propose(records)
            record = _record(number, proposal, self._try(proposal.entries, baseline, records))
            book.append(record)
            records.append(record)
        return records[:trials]

    def _try(self, entries: Entries, baseline: Baseline, records: Sequence[TrialRecord]) -> Judgement:
        try:
            stack = Stack.of([dict(entry) for entry in entries], allow=self.allow)
        except GuardError as error:
            return Judgement(REFUSED, f"{type(error).__name__}: {error}")
        sketch = baseline.costs.sketch(stack)
        least = sketch.predict(count_steps(baseline.whole_reply.costs))
        if least > self.budget + ROUNDING:
            predicted = AnswerCost(1 + sum(sketch.branches), 1 + len(sketch.branches) + sketch.heads, least, 0.0)
            return Judgement(OVER_BUDGET, f"{least:.2f} forwards by the cost model; it was not run", cost=predicted)
        return self._try_first(stack, sketch, baseline, records)

    def _try_first(
        self, stack: Stack, sketch: CostSketch, baseline: Baseline, records: Sequence[TrialRecord]
    ) -> Judgement:
        """Answer the first items, and the others where that promises something."""
        first_part, remainder = self.parts
        first = self._answer(stack, first_part, LABELS[0])
        if first.refusal:
            return Judgement(REFUSED, first.refusal)
        cost = price(stack, first, baseline.first, sketch)
        gain = baseline.objectives.compare(baseline.first.answers, first.answers)
        early = self._judge_first(gain, cost, records)
        if early is not None:
            quality = baseline.objectives.score(first.answers)
            return Judgement(*early, quality, gain, gain.value, cost)
        further = self._answer(stack, remainder, LABELS[1])
        if further.refusal:
            return Judgement(REFUSED, further.refusal, first_gain=gain.value, cost=cost)
        return self._judge_whole(stack, first.join(further), sketch, baseline, gain.value)

    def _judge_first(self, gain: Gain, cost: AnswerCost, records: Sequence[TrialRecord]) -> tuple[str, str] | None:
        if cost.answer > self.budget + ROUNDING:
            return OVER_BUDGET, f"{cost.answer:.2f} forwards"
        if gain.value + 2 * gain.error < 0:
            return WEAK, f"worse than plain generate on the first items: {gain.value:+.3f}"
        peers = [record.first_gain for record in records if record.first_gain is not None]
        if len(peers) >= PEERS and gain.value + gain.error < (median := statistics.median(peers)):
            return WEAK, f"below the median of earlier trials on the first items: {gain.value:+.3f}, {median:+.3f}"
        return None

    def _judge_whole(
        self, stack: Stack, reply: StackReply, sketch: CostSketch, baseline: Baseline, first_gain: float
    ) -> Judgement:
        cost = price(stack, reply, baseline.whole_reply, sketch)
        gain = baseline.objectives.compare(baseline.whole_reply.answers, reply.answers)
        quality = baseline.objectives.score(reply.answers)
        state, reason = FINISHED, ""
        if cost.answer > self.budget + ROUNDING:
            state, reason = OVER_BUDGET, f"{cost.answer:.2f} forwards"
        elif gain.loses_recall:
            state, reason = NAMES_LESS, f"captions name less of what is there: {gain.recall:+.3f}"
        return Judgement(state, reason, quality, gain, first_gain, cost)


LABELS = ("first", "others")
"""What the two parts of the calibration items are called."""


def price(stack: Stack, reply: StackReply, plain: StackReply, sketch: CostSketch) -> AnswerCost:
    """Return what a reply cost; by the clock where that is more and forwards are not all counted."""
    cost = measure_cost(reply.costs, plain.costs, sketch)
    is_counted = not any(is_marked(getattr(strategy, hook, None)) for strategy in stack for hook in UNCOUNTED)
    return cost if is_counted else AnswerCost(cost.prefill, cost.decode, max(cost.answer, cost.clock), cost.clock)


def _record(number: int, proposal: Proposal, judgement: Judgement) -> TrialRecord:
    quality, gain, cost = judgement.quality, judgement.gain, judgement.cost
    recall: dict[str, float] = {} if quality is None or quality.recall is None else {"recall": quality.recall}
    return TrialRecord(
        number,
        proposal.choices,
        proposal.entries,
        judgement.state,
        judgement.reason,
        scores={} if quality is None else {**quality.parts, **recall},
        gains={} if gain is None else {name: (part.value, part.low, part.high) for name, part in gain.parts.items()},
        gain=0.0 if gain is None else gain.value,
        error=0.0 if gain is None else gain.error,
        first_gain=judgement.first_gain,
        cost={} if cost is None else cost.to_dict(),
    )


def find_front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that no other one beats or equals in accuracy, inventions and cost together, the cheapest first."""
    finished = [record for record in records if record.is_finished]
    points = {record.number: _losses(record) for record in finished}
    front = [
        record
        for record in finished
        if not any(_dominates(points[rival.number], points[record.number], rival, record) for rival in finished)
    ]
    return sorted(front, key=lambda record: (record.cost["answer"], record.number))


def _losses(record: TrialRecord) -> list[float]:
    """Return what a trial came to, less being better everywhere."""
    values = list_values(record)
    has_accuracy = bool(set(record.scores) - {CAPTIONS, "recall"})
    return [-values[0], *values[1:]] if has_accuracy else values


def _dominates(rival_losses: Sequence[float], losses: Sequence[float], rival: TrialRecord, record: TrialRecord) -> bool:
    if rival_losses == losses:
        return rival.number < record.number
    return all(rival_loss <= loss for rival_loss, loss in zip(rival_losses, losses, strict=True))


def rank(front: Iterable[TrialRecord], most: int) -> list[TrialRecord]:
    """Return the trials of a front that gain something, the greatest gain less its standard error first."""
    gaining = [record for record in front if record.gain > 0]
    return sorted(gaining, key=lambda record: (-record.cautious, record.number))[:most]
