"""Judge stacks on held-out items: a bench run with every control, and one with each strategy alone at its published values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm_guard.bench.reporting import export, page, results
from lvlm_guard.bench.reporting.judging import SuiteVerdicts, judge_run
from lvlm_guard.bench.reporting.results import Results, compare_measure
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.running import runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.running.systems import CONTROLS, GREEDY
from lvlm_guard.bench.scoring.significance import Significance, correct_p_values
from lvlm_guard.errors import InputError, Refused
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.answering import StackReply, TunedModel
from lvlm_guard.tuning.costs import AnswerCost, CostModel
from lvlm_guard.tuning.objectives import Gain, Objectives
from lvlm_guard.tuning.searching import ROUNDING, price
from lvlm_guard.tuning.splits import Split

TUNED = "tuned"
"""What the stack with the greatest cautious gain is called in the held-out run; those after it are `tuned-2` and so on."""

REPORT = "report.html"


@dataclass(frozen=True)
class Finalist:
    """A stack of the front on held-out items.

    Args:
        name: What it is called in the run.
        stack: The stack.
        verdicts: On the suite's headline, then level by level.
        gain: Over plain generate; None where it refused.
        cost: In forward-equivalents; None where it refused.
        fault: Why it is not recommended; empty where it is as good as its verdicts.
    """

    name: str
    stack: Stack
    verdicts: Sequence[Verdict]
    gain: Gain | None
    cost: AnswerCost | None
    fault: str = ""

    @property
    def helps(self) -> bool:
        """Whether it beats plain generate and every control somewhere, hurts nowhere, and keeps budget and recall."""
        kinds = [verdict.kind for verdict in self.verdicts]
        return not self.fault and "helps" in kinds and "hurts" not in kinds


@dataclass(frozen=True)
class Single:
    """A strategy alone at its published values, beside the tuned stack on the same items.

    Args:
        name: The strategy.
        gain: Over plain generate; None where it refused.
        cost: In forward-equivalents; None where it refused.
        leads: The tuned stack minus this one, by measure, Holm's correction over strategies and measures; none without a tuned stack,
            and none of what is over budget.
        refusal: Why it was not run or could not answer; empty where it did.
        fault: Why it is no choice at the same cost limit; empty where it is one.
    """

    name: str
    gain: Gain | None
    cost: AnswerCost | None
    leads: Mapping[str, Significance]
    refusal: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Judge:
    """Judges stacks of one search.

    Args:
        folder: Of the search.
        subject: The model.
        split: The held-out items.
        objectives: What decides.
        costs: What stacks cost.
        budget: Most forward-equivalents of an answer.
        without: Controls that are switched off.
        label: Folder of the run with the stacks and the controls.
        steps: Decode steps of a plain answer, the mean, for what is known to be over budget before it runs.
    """

    folder: Path
    subject: TunedModel
    split: Split
    objectives: Objectives
    costs: CostModel
    budget: float
    without: tuple[str, ...] = ()
    label: str = "held_out"
    steps: float = 0.0

    def judge(self, stacks: Mapping[str, Stack], *, progress: bool = True) -> list[Finalist]:
        """Put stacks and every control to the held-out items, and write the run's figures and page.

        Args:
            stacks: By the name they have in the run.
            progress: Whether to show a bar in a terminal.

        Raises:
            Refused: Plain generate cannot answer.
        """
        record = self._run(self.label, stacks, self.without, progress=progress)
        figures = results.score(record, data=self.subject.data)
        judged = judge_run(record, figures, self.subject.data)
        self._write(record, figures, judged)
        verdicts = judged[self.split.name]
        return [
            self._judge_stack(record, name, stack, [*verdicts.headline, *verdicts.levels])
            for name, stack in stacks.items()
        ]

    def _run(self, label: str, stacks: Mapping[str, Stack], without: tuple[str, ...], *, progress: bool) -> Record:
        plan = RunPlan(
            {self.split.name: self.split.choice},
            systems.build_systems(stacks, without),
            without,
            self.subject.data,
            batch=self.subject.batch,
            seed=self.subject.seed,
            looks=self.subject.looks,
        )
        record = runner.run(
            plan,
            self.subject.model,
            self.subject.processor,
            self.folder / label,
            model_id=self.subject.name,
            gathered=self.split.content,
            progress=progress,
        )
        if (refusal := record.refusal(GREEDY, self.split.name)) is not None:
            raise Refused(f"Plain generate cannot answer the held-out items ({refusal.error}): {refusal.reason}")
        return record

    def _write(self, record: Record, figures: Results, judged: Mapping[str, SuiteVerdicts]) -> None:
        export.write(figures, record.folder, "results", judged)
        page.write(record, figures, record.folder / REPORT, self.subject.data, judged)

    def _judge_stack(self, record: Record, name: str, stack: Stack, verdicts: Sequence[Verdict]) -> Finalist:
        about = [verdict for verdict in verdicts if verdict.system == name]
        reply = read_reply(record, name, self.split.name)
        if reply.refusal:
            return Finalist(name, stack, about, None, None, reply.refusal)
        plain = read_reply(record, GREEDY, self.split.name)
        gain = self.objectives.compare(plain.answers, reply.answers)
        cost = price(stack, reply, plain, self.costs.sketch(stack))
        return Finalist(name, stack, about, gain, cost, self._find_fault(gain, cost))

    def _find_fault(self, gain: Gain, cost: AnswerCost) -> str:
        """Return why something is no choice, whatever its verdicts; empty where it may be one."""
        if cost.answer > self.budget + ROUNDING:
            return f"it costs {cost.answer:.2f} forwards, more than {self.budget:g}"
        return f"its captions name less of what is there: {gain.recall:+.3f}" if gain.loses_recall else ""

    def compare_singles(self, names: Mapping[str, Stack], tuned: str = "", *, progress: bool = True) -> list[Single]:
        """Put single strategies to the held-out items at the same cost limit, and compare the tuned stack with each.

        What the cost model knows to be over budget is not run.

        Args:
            names: Each strategy alone at its published values, by name.
            tuned: The tuned stack in the held-out run; empty where there is none.
            progress: Whether to show a bar in a terminal.
        """
        least = {name: self.costs.sketch(stack).predict(self.steps) for name, stack in names.items()}
        singles = {
            name: Single(
                name, None, None, {}, f"{cost:.2f} forwards by the cost model, more than {self.budget:g}; not run"
            )
            for name, cost in least.items()
            if cost > self.budget + ROUNDING
        }
        affordable = {name: stack for name, stack in names.items() if name not in singles}
        without = tuple(name for name in CONTROLS if name != GREEDY)
        record = self._run("singles", affordable, without, progress=progress)
        singles |= {name: self._measure_single(record, name, stack) for name, stack in affordable.items()}
        leads = self._find_leads(record, singles.values(), tuned) if tuned else {}
        return [replace(singles[name], leads=leads.get(name, {})) for name in names]

    def _measure_single(self, record: Record, name: str, stack: Stack) -> Single:
        reply, plain = (read_reply(record, system, self.split.name) for system in (name, GREEDY))
        if reply.refusal:
            return Single(name, None, None, {}, reply.refusal)
        gain = self.objectives.compare(plain.answers, reply.answers)
        cost = price(stack, reply, plain, self.costs.sketch(stack))
        return Single(name, gain, cost, {}, fault=self._find_fault(gain, cost))

    def _find_leads(self, record: Record, singles: Iterable[Single], tuned: str) -> dict[str, dict[str, Significance]]:
        """Return the tuned stack minus each single strategy that is within the budget, by strategy and measure."""
        answers = read_reply(store.read(self.folder / self.label), tuned, self.split.name).answers
        rivals = [single.name for single in singles if not single.refusal and is_affordable(single, self.budget)]
        tests: dict[tuple[str, str], Significance] = {}
        for name in rivals:
            reply = read_reply(record, name, self.split.name)
            for part, measure in self.objectives.parts.items():
                test = compare_measure(measure, reply.answers, answers)
                tests |= {} if test is None else {(name, part): test}
        leads: dict[str, dict[str, Significance]] = {name: {} for name in rivals}
        for (name, part), test in correct_p_values(tests).items():
            leads[name][part] = test
        return leads


def is_affordable(single: Single, budget: float) -> bool:
    """Whether a strategy alone costs no more than the budget."""
    return single.cost is not None and single.cost.answer <= budget + ROUNDING


def read_reply(record: Record, system: str, suite: str) -> StackReply:
    """Return what a system of a run answered."""
    if (refusal := record.refusal(system, suite)) is not None:
        return StackReply((), (), f"{refusal.error}: {refusal.reason}")
    return StackReply(record.read_answers(system, suite), record.costs(system, suite))


def name_finalists(stacks: Sequence[Stack]) -> dict[str, Stack]:
    """Name stacks for the held-out run, the first one `tuned`."""
    return {TUNED if place == 1 else f"{TUNED}-{place}": stack for place, stack in enumerate(stacks, 1)}


def parse_budget(text: str) -> float:
    """Read a budget such as `1.2x`: forward-equivalents of an answer over plain generate's.

    Raises:
        InputError: It is no number, or below 1, which plain generate costs.
    """
    try:
        budget = float(text.strip().removesuffix("x"))
    except ValueError:
        budget = math.nan
    if not math.isfinite(budget):
        raise InputError(f"--budget is a factor on what plain generate costs, such as 1.2x; got {text!r}.")
    if budget < 1:
        raise InputError(f"--budget {text} is below 1x, which plain generate itself costs; take 1.2x or 2x.")
    return budget
