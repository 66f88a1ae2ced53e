"""The whole of a search: calibration, trials, the front, held-out verdicts, and the files that it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.items import Level
from lvlm_guard.bench.running.manifest import model_identity, versions
from lvlm_guard.bench.running.runner import one_thread_if_small
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.answering import AnswerCache, TunedModel
from lvlm_guard.tuning.candidates import Candidate, SearchSpace
from lvlm_guard.tuning.costs import count_steps
from lvlm_guard.tuning.front_chart import draw_front
from lvlm_guard.tuning.judging import Finalist, Judge, Single, name_finalists
from lvlm_guard.tuning.records import TrialBook, TrialRecord, open_book
from lvlm_guard.tuning.results_page import SearchOutcome, choose_compared, describe_stack, format_page, list_standing
from lvlm_guard.tuning.sampling import Sampler, load_optuna
from lvlm_guard.tuning.searching import Baseline, Searcher, Track, find_front, rank
from lvlm_guard.tuning.splits import Splits
from lvlm_guard.tuning.stack_file import HEAD, format_stack

PAGE, FIGURES, CHART = "tune.md", "tune.json", "front.svg"
FINALISTS = 3
"""Most stacks of the front that are judged on held-out items."""

TRIALS = 60


@dataclass(frozen=True)
class Tuning:
    """What is searched.

    Args:
        splits: Items to search on and to judge on, of the levels that count.
        levels: Those levels.
        space: The stacks.
        budget: Most forward-equivalents of an answer; 1 is plain generate.
        trials: How many stacks are tried.
        seed: Of the search.
        without: Controls that are switched off when stacks are judged.
        singles: Whether each strategy alone is judged too, at its published values.
        allow: Functions that stacks may name.
    """

    splits: Splits
    levels: tuple[Level, ...]
    space: SearchSpace
    budget: float
    trials: int = TRIALS
    seed: int = 0
    without: tuple[str, ...] = ()
    singles: bool = True
    allow: Collection[str] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if not self.budget >= 1 or self.trials < 1 or self.seed < 0:
            raise InputError(
                "A search needs a budget of at least 1, at least 1 trial and a seed of at least 0; got "
                f"{self.budget}, {self.trials} and {self.seed}."
            )

    def describe(self, subject: TunedModel) -> dict[str, Any]:
        """Return what trials depend on, as plain values."""
        return {
            "model": {"id": subject.name, **model_identity(subject.model)},
            "calibration": self.splits.calibration.describe(),
            "held_out": self.splits.held_out.describe(),
            "levels": list(self.levels),
            "budget": self.budget,
            "seed": self.seed,
            "batch": subject.batch,
            "looks": subject.looks,
            "largest": self.space.largest,
            "strategies": [_describe_candidate(candidate) for candidate in self.space.candidates],
            "versions": {**versions(), "optuna": load_optuna().__version__},
        }


def _describe_candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "fixed": dict(candidate.fixed),
        "parameters": [dataclasses.asdict(parameter) for parameter in candidate.parameters],
    }


def check_destination(out: Path) -> None:
    """Check that a stack file can be written beside its search.

    Raises:
        InputError: It does not end in `.toml`, or is there and is nobody's search.
    """
    if out.suffix.lower() != ".toml":
        raise InputError(f"--out names the stack file, which ends in .toml; got {str(out)!r}. Name DIR/stack.toml.")
    if exists(out) and not files.read_if_there(out).startswith(HEAD.encode()):
        raise InputError(f"{out} is there and was not written by a search. Name another file.")


def tune(tuning: Tuning, subject: TunedModel, out: Path, *, track: Track = iter, command: str = "") -> SearchOutcome:
    """Search stacks, judge the best on held-out items, and write what came of it.

    Beside the stack file lie the page `tune.md` with `front.svg`, the figures `tune.json`, and everything that was answered, so that
    the same call goes on where it was stopped. The stack file is written only where a stack beats plain generate and every
    control on held-out items; an older one of the same search is removed where none does.

    Args:
        tuning: What to search.
        subject: The model, and how it is run.
        out: The stack file, in a folder of its own.
        track: Shows how far the trials are.
        command: What the page names as the command.

    Raises:
        InputError: Optuna is not installed, or the folder holds something else, another search or one of another model.
        Refused: Plain generate cannot answer the items.
    """
    check_destination(out)
    load_optuna()
    with one_thread_if_small(subject.model), open_book(out.parent, tuning.describe(subject)) as book:
        outcome = _search(tuning, subject, out.parent, book, track)
        _write(outcome, out, command)
    return outcome


def _search(tuning: Tuning, subject: TunedModel, folder: Path, book: TrialBook, track: Track) -> SearchOutcome:
    searcher = Searcher(
        AnswerCache(folder / "answers", subject),
        tuning.splits.calibration,
        tuning.levels,
        tuning.budget,
        Sampler(tuning.space, tuning.seed),
        tuning.allow,
    )
    baseline = searcher.measure_plain()
    records = searcher.search(book, baseline, tuning.trials, track)
    front = find_front(records)
    finalists, singles = _judge(tuning, subject, folder, baseline, rank(front, FINALISTS))
    return SearchOutcome(
        model=subject.name,
        splits=tuning.splits,
        levels=tuning.levels,
        budget=tuning.budget,
        seed=tuning.seed,
        plain=baseline.quality,
        records=records,
        front=front,
        finalists=finalists,
        singles=singles,
        left_out=tuning.space.left_out,
        recommended=next((finalist for finalist in finalists if finalist.helps), None),
    )


def _judge(
    tuning: Tuning, subject: TunedModel, folder: Path, baseline: Baseline, best: list[TrialRecord]
) -> tuple[list[Finalist], list[Single]]:
    stacks = name_finalists(
        [Stack.of([dict(entry) for entry in record.entries], allow=tuning.allow) for record in best]
    )
    judge = Judge(
        folder,
        subject,
        tuning.splits.held_out,
        baseline.objectives,
        baseline.costs,
        tuning.budget,
        tuning.without,
        f"held_out-{tuning.trials}",  # what is judged follows from the trials, so more of them make another run
        count_steps(baseline.whole_reply.costs),
    )
    finalists = judge.judge(stacks) if stacks else []
    if not tuning.singles:
        return finalists, []
    alone = {
        candidate.name: Stack.of({"name": candidate.name, "params": dict(candidate.fixed)}, allow=tuning.allow)
        for candidate in tuning.space.candidates
    }
    return finalists, judge.compare_singles(alone, choose_compared(finalists))


def _write(outcome: SearchOutcome, out: Path, command: str) -> None:
    folder = out.parent
    files.write_whole(folder / CHART, draw_front(outcome.records, outcome.front, outcome.budget).encode("utf-8"))
    figures = json.dumps(outcome.to_dict(), ensure_ascii=False, indent=1, default=str) + "\n"
    files.write_whole(folder / FIGURES, figures.encode("utf-8", "backslashreplace"))
    files.write_whole(folder / PAGE, format_page(outcome, command).encode("utf-8", "backslashreplace"))
    if outcome.recommended is None:
        with contextlib.suppress(FileNotFoundError):
            out.unlink()
        return
    entries = _find_entries(outcome, outcome.recommended)
    files.write_whole(out, format_stack(entries, list_provenance(outcome, outcome.recommended)).encode("utf-8"))


def _find_entries(outcome: SearchOutcome, finalist: Finalist) -> tuple[Mapping[str, Any], ...]:
    """Return the stack as the search proposed it, so that what stays at its published value is left out."""
    described = finalist.stack.to_dict()
    return next(
        record.entries
        for record in outcome.records
        if Stack.of([dict(entry) for entry in record.entries]).to_dict() == described
    )


def list_provenance(outcome: SearchOutcome, finalist: Finalist) -> list[str]:
    """Return where a stack comes from, a line each: model, items, seed and held-out figures."""
    searched, judged = outcome.splits.calibration.describe(), outcome.splits.held_out.describe()
    gain, cost = finalist.gain, finalist.cost
    lines = [
        f"model: {outcome.model}",
        f"searched on: {json.dumps(searched)}",
        f"judged on: {json.dumps(judged)}",
        f"levels: {', '.join(outcome.levels)}; budget {outcome.budget:g}x; seed {outcome.seed}; {len(outcome.records)} trials",
        f"stack: {describe_stack(finalist)}",
    ]
    if gain is not None and cost is not None:
        parts = ", ".join(
            f"{name} {part.value:+.3f} [{part.low:+.3f}, {part.high:+.3f}]" for name, part in gain.parts.items()
        )
        lines.append(f"held-out gain over plain generate: {gain.value:+.4f} ({parts})")
        lines.append(
            f"cost: {cost.answer:.2f} forwards an answer, {cost.clock:.2f} times the time of plain generate where it ran"
        )
    lines += list_standing(outcome)
    lines += [
        f"verdict, {verdict.level or 'all levels'}: {verdict.kind}. {verdict.why}" for verdict in finalist.verdicts
    ]
    return lines
