"""Judge stacks on held-out items: a bench run with every control, and one with each strategy alone at its published values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from lvlm_guard.tuning.searching import price
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
        leads: The tuned stack minus this one, by measure, Holm's correction over the strategies; none without a tuned stack.
        refusal: Why it could not answer; empty where it could.
    """

    name: str
    gain: Gain | None
    cost: AnswerCost | None
    leads: Mapping[str, Significance]
    refusal: str = ""


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
    """

    folder: Path
    subject: TunedModel
    split: Split
    objectives: Objectives
    costs: CostModel
    budget: float
    without: tuple[str, ...] = ()
    label: str = "held_out"

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
        fault = ""
        if cost.answer > self.budget:
            fault = f"it costs {cost.answer:.2f} forwards, more than {self.budget:g}"
        elif gain.loses_recall:
            fault = f"its captions name less of what is there: {gain.recall:+.3f}"
        return Finalist(name, stack, about, gain, cost, fault)

    def compare_singles(self, names: Mapping[str, Stack], tuned: str | None, *, progress: bool = True) -> list[Single]:
        """Put single strategies to the held-out items, and compare the tuned stack with each.

        Args:
            names: Each strategy alone at its published values, by name.
            tuned: The tuned stack in the held-out run; None where there is none.
            progress: Whether to show a bar in a terminal.
        """
        without = tuple(name for name in CONTROLS if name != GREEDY)
        record = self._run("singles", names, without, progress=progress)
        plain = read_reply(record, GREEDY, self.split.name)
        replies = {name: read_reply(record, name, self.split.name) for name in names}
        leads = self._find_leads(replies, tuned)
        return [
            Single(name, None, None, {}, reply.refusal)
            if reply.refusal
            else Single(
                name,
                self.objectives.compare(plain.answers, reply.answers),
                price(names[name], reply, plain, self.costs.sketch(names[name])),
                leads.get(name, {}),
            )
            for name, reply in replies.items()
        ]

    def _find_leads(self, replies: Mapping[str, StackReply], tuned: str | None) -> dict[str, dict[str, Significance]]:
        if tuned is None:
            return {}
        answers = read_reply(store.read(self.folder / self.label), tuned, self.split.name).answers
        leads: dict[str, dict[str, Significance]] = {name: {} for name in replies}
        for part, measure in self.objectives.parts.items():
            tests = {
                name: test
                for name, reply in replies.items()
                if not reply.refusal and (test := compare_measure(measure, reply.answers, answers)) is not None
            }
            for name, test in correct_p_values(tests).items():
                leads[name][part] = test
        return leads


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
