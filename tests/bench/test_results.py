"""Figures come from the raw answers alone, and each stands beside its interval, greedy, and what it took."""

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import quick_run
from quick_run import Toy

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.bench.reporting import comparing, export, results
from lvlm_guard.bench.running import manifest
from lvlm_guard.bench.running.sealing import CHECK
from lvlm_guard.bench.running.store import MANIFEST, read
from lvlm_guard.bench.running.stored_manifest import UNSEALED
from lvlm_guard.bench.scoring.intervals import share, yes_no_counts, yes_ratio
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.parsers import ours
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*no check values")  # runs rewritten here have no check values


def is_right(parse):
    def count(said):
        truth = said.item.truth
        return (float(parse(said.text) is (truth == "yes")), 1.0) if isinstance(truth, str) else None

    return each(count)


def yes_no(said):
    true = said.item.truth == "yes"
    return tuple(yes_no_counts([ours(said.text)], [true])[0]) if isinstance(said.item.truth, str) else None


@dataclass(frozen=True)
class Asking(Toy):
    """The toy, scored by two parsers that disagree about everything."""

    name: ClassVar[str] = "toy"
    parsers: ClassVar[tuple] = ("ours", "contrary")

    def measures(self, parser):
        parse = {"ours": ours, "contrary": lambda text: {True: False, False: True}.get(ours(text))}[parser]
        return (
            Measure("accuracy", "object", "right answers", is_right(parse), share, binary=True),
            Measure("yes_ratio", "all", "share of yes", each(yes_no), yes_ratio, None),
            Measure("nothing", "all", "never counted", lambda group: None),
        )

    def official(self, said, parser):
        return {"n": float(len(said)), "undefined": None}


@dataclass(frozen=True)
class Needy(Asking):
    """One that cannot read answers before it has read its files."""

    def load(self, data):
        object.__setattr__(self, "found", data)
        return super().load(data)

    def measures(self, parser):
        if getattr(self, "found", None) is None:
            raise InputError("call load(data) first")
        return super().measures(parser)


@pytest.fixture(autouse=True)
def _in_the_catalogue(monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Asking, "tests"))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return quick_run.run(tmp_path_factory.mktemp("run"), quick_run.plan(pictures=30))


def rewritten(record, folder, change):
    """A copy of a run whose answers were changed; `change` maps a system's answer to another."""
    for path in record.folder.rglob("*.json*"):
        copy = folder / path.relative_to(record.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        if path.parent.parent.name == "answers":
            told = [change(path.parent.name, json.loads(line)) for line in path.read_text().splitlines()]
            copy.write_text("".join(json.dumps(one) + "\n" for one in told))
    unseal(folder)
    return read(folder)


def unseal(folder):
    """Make a run one that was begun before lines had check values."""
    for path in folder.rglob("*.json*"):
        documents = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        plain = [{name: value for name, value in json.loads(text).items() if name != CHECK} for text in documents]
        if path.name == MANIFEST:
            plain[0]["format"] = UNSEALED
        path.write_text("".join(json.dumps(values) + "\n" for values in plain))


def truths(record):
    return {item.id: item.truth for own in record.items.values() for item in own}


def test_values_and_outcomes_are_those_of_the_answers(record):
    scored = results.score(record)
    for system in ("greedy", "sampling"):
        said = [one for one in record.read_answers(system, "toy") if isinstance(one.item.truth, str)]
        right = [ours(one.text) is (one.item.truth == "yes") for one in said]
        found = scored.of("toy", "accuracy")[system]
        assert found.found.value == pytest.approx(sum(right) / len(right))
        assert (found.n, found.clusters) == (61, 31)
        outcome = next(one for one in scored.outcomes if (one.suite, one.system) == ("toy", system))
        margins = [one.margin for one in said]
        assert outcome.auc["all"] == pytest.approx(auc(margins, [one.item.truth == "yes" for one in said]))
        assert outcome.yes_ratio == pytest.approx(sum(ours(one.text) is True for one in said) / len(said))
        assert outcome.official == {"n": 91.0, "undefined": None}
        assert outcome.spent.tokens == sum(one.tokens for one in record.read_answers(system, "toy"))
    assert scored.of("toy", "nothing") == {}


def test_what_sampling_changed_is_told_and_greedy_is_compared_with_nothing(record):
    scored = results.score(record)
    outcomes = {one.system: one for one in scored.outcomes if one.suite == "toy"}
    texts = [{one.item.id: one.text for one in record.read_answers(name, "toy")} for name in ("greedy", "sampling")]
    different = sum(texts[0][name] != texts[1][name] for name in texts[0])
    assert outcomes["greedy"].changed is None
    assert outcomes["greedy"].spent.ratio == 1.0
    assert (outcomes["sampling"].changed.different, outcomes["sampling"].changed.n) == (different, 91)
    assert different > 30
    assert scored.of("toy", "accuracy")["greedy"].against_greedy is None


def test_a_system_that_is_always_right_is_better_and_a_copy_of_greedy_changed_nothing(record, tmp_path):
    known = truths(record)

    def change(system, answer):
        if system == "sampling" and isinstance(known[answer["id"]], str):
            return {**answer, "text": known[answer["id"]]}
        return answer

    scored = results.score(rewritten(record, tmp_path / "right", change))
    found = scored.of("toy", "accuracy")
    test = found["sampling"].against_greedy
    assert found["sampling"].found.value == 1.0
    assert test.difference.value == pytest.approx(1.0 - found["greedy"].found.value)
    assert test.difference.low > 0.3
    assert test.p < 1e-6
    assert test.adjusted_p == test.p, "the only control beside greedy"
    plain = {
        one.item.id: one.text for one in record.read_answers("greedy", "toy") + record.read_answers("greedy", "small")
    }
    same = results.score(rewritten(record, tmp_path / "same", lambda _, one: {**one, "text": plain[one["id"]]}))
    outcome = next(one for one in same.outcomes if (one.suite, one.system) == ("toy", "sampling"))
    assert outcome.changed.is_none
    assert outcome.changed.verdict == "changed nothing"
    assert same.of("toy", "accuracy")["sampling"].against_greedy.p == 1.0


def test_stacks_are_corrected_for_each_other_and_not_for_the_controls(record, tmp_path):
    told = rewritten(record, tmp_path, lambda _, one: one)
    for number in range(3):
        for path in [*(told.folder / "answers" / "sampling").iterdir()]:
            copy = told.folder / "answers" / f"stack{number}" / path.name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    stacks = {f"stack{number}": {**told.manifest["systems"]["sampling"], "role": "stack"} for number in range(3)}
    manifest = {**told.manifest, "systems": {**told.manifest["systems"], **stacks}}
    (told.folder / "manifest.json").write_text(json.dumps(manifest))
    found = results.score(read(told.folder)).of("toy", "yes_ratio")
    p = found["stack0"].against_greedy.p
    assert 0 < p < 1 / 3
    assert found["stack0"].against_greedy.adjusted_p == pytest.approx(min(3 * p, 1))
    assert found["sampling"].against_greedy.adjusted_p == pytest.approx(p)


def test_what_is_unfinished_has_no_scores(record, tmp_path):
    told = rewritten(record, tmp_path, lambda _, one: one)
    path = told.folder / "answers" / "sampling" / "toy.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    scored = results.score(read(told.folder))
    outcome = next(one for one in scored.outcomes if (one.suite, one.system) == ("toy", "sampling"))
    assert (outcome.whole, outcome.answers, outcome.items) == (False, 89, 91)
    assert set(scored.of("toy", "accuracy")) == {"greedy"}
    assert set(scored.of("small", "accuracy")) == {"greedy", "sampling"}


def test_another_parser_reads_the_same_answers_anew(record):
    contrary = results.score(record, "contrary")
    ours_too = results.score(record)
    assert set(contrary.parsers.values()) == {"contrary"}
    pairs = [(one.of("toy", "accuracy")["greedy"].found.value) for one in (ours_too, contrary)]
    heard = [ours(one.text) for one in record.read_answers("greedy", "toy") if isinstance(one.item.truth, str)]
    assert sum(pairs) == pytest.approx(1 - heard.count(None) / len(heard))
    with pytest.raises(InputError, match="Did you mean 'contrary'"):
        results.score(record, "contrari")


def test_a_suite_that_needs_its_files_to_read_answers_is_given_them(record, tmp_path, monkeypatch):
    expected = results.score(record)
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Needy, "tests"))
    with pytest.raises(InputError, match="load"):
        results.score(record)
    again = results.score(record, data=tmp_path).scores
    assert results.to_plain(again) == results.to_plain(expected.scores)


def test_scoring_again_gives_the_same_figures_and_files(record, tmp_path):
    first, again = (export.write(results.score(read(record.folder)), tmp_path, name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_json_and_csv_hold_the_scores(record, tmp_path):
    scored = results.score(record)
    as_json, as_csv = export.write(scored, tmp_path)
    told = json.loads(as_json.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(told) == {"manifest", "parsers", "outcomes", "scores", "bias", "planes", "edits"}
    rows = list(csv.DictReader(io.StringIO(as_csv.read_text())))
    assert tuple(rows[0]) == export.COLUMNS
    assert len(rows) == len(told["scores"]) == len(scored.scores)
    assert {(row["model"], row["architecture"]) for row in rows} == {
        tuple(record.manifest["model"][name] for name in ("id", "class"))
    }
    for row, one in zip(rows, scored.scores, strict=True):
        assert (row["system"], row["measure"], int(row["n"])) == (one.system, one.measure, one.n)
        assert float(row["value"]) == one.found.value
        assert (row["p"] == "") == (one.against_greedy is None or math.isnan(one.against_greedy.p))
    assert results.to_plain({"a": (math.inf, math.nan, 1.0)}) == {"a": [None, None, 1.0]}


def test_two_runs_are_compared_answer_by_answer(record, tmp_path):
    other = quick_run.run(tmp_path / "other", quick_run.plan(pictures=30, seed=1))
    found = comparing.compare(record, other)
    assert found.models == (manifest.describe_model(record.manifest),) * 2
    assert found.changed["toy"]["greedy"].is_none
    assert found.changed["toy"]["sampling"].different > 30
    pairs = {(one.suite, one.system, one.measure): one for one in found.pairs}
    greedy, sampling = (pairs["toy", system, "accuracy"] for system in ("greedy", "sampling"))
    assert greedy.before == greedy.after
    assert greedy.test.p == 1.0
    assert sampling.test.difference.value == pytest.approx(sampling.after - sampling.before)
    assert found.left_out == []


def test_runs_of_other_items_are_not_compared(record, tmp_path):
    with pytest.raises(InputError, match="other items"):
        comparing.compare(record, quick_run.run(tmp_path, quick_run.plan(pictures=29)))


def test_what_one_run_lacks_is_said(record, tmp_path):
    told = rewritten(record, tmp_path, lambda _, one: one)
    (told.folder / "answers" / "sampling" / "toy.jsonl").unlink()
    found = comparing.compare(record, read(told.folder))
    assert found.left_out == ["toy, sampling: 91 and 0 of 91 answers"]
    assert set(found.changed["toy"]) == {"greedy"}
