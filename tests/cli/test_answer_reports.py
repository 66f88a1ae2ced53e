"""Reports of many answers: one diagnosis is held at a time, and what is in the folder already is not made again."""

from __future__ import annotations

import json
import re
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from lvlm_guard import InputError
from lvlm_guard.cli.answer_reports import AnswerReports, QuestionedAnswer
from lvlm_guard.diagnosis import AnswerDiagnosis, AnswerMaps, Cause, WordDiagnosis
from lvlm_guard.diagnosis.answer import diagnosing
from lvlm_guard.diagnosis.answer.result import read_diagnosis
from lvlm_guard.diagnosis.report.files import prepare_folder
from lvlm_guard.host.stack import Stack
from lvlm_guard.testing import TinyProcessor

COUNT = 12


class Diagnoser:
    """Stands for `diagnose_answer`: notes what it was asked, and how many diagnoses and pictures were alive then."""

    def __init__(self, stop_at=None):
        self.prompts, self.alive, self.stop_at = [], [], stop_at
        self._diagnoses, self._pictures = [], []

    def __call__(self, guard, pictures, prompt, *, answer, **settings):
        self.alive.append([sum(each() is not None for each in kept) for kept in (self._diagnoses, self._pictures)])
        self.prompts.append(prompt)
        if self.stop_at == len(self.prompts):
            raise KeyboardInterrupt
        word = WordDiagnosis(
            "mug", (2, 5), 1, 1, "object", "is there a mug?", 0.75, "margin", True, -1.1, -0.5, 0.7, 0.6, "mug", True,
            causes=(Cause("prior", "without the picture too"),),
        )  # fmt: skip
        picture = Image.new("RGB", (30, 20), "teal")
        diagnosis = AnswerDiagnosis(
            prompt,
            "a mug",
            "model",
            "toy",
            ("vcd",),
            0.5,
            (word,),
            AnswerMaps(),
            ("No lens: none.",),
            pictures=(picture,),
        )
        self._diagnoses.append(weakref.ref(diagnosis))
        self._pictures.append(weakref.ref(picture))
        return diagnosis


def interrupt(*_):
    raise KeyboardInterrupt


class Toy(nn.Module):
    """Enough of a model to be told from another."""

    def __init__(self):
        super().__init__()
        self.config, self.dtype = SimpleNamespace(to_dict=lambda: {"size": 1}), "torch.float32"
        self.weight = nn.Parameter(torch.zeros(2, 2))


def make_guard(model, stack=()):
    return SimpleNamespace(model=model, stack=Stack.of(stack) if stack else Stack(), processor=TinyProcessor("llava"))


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return paths


def write(pictures, out, monkeypatch, diagnoser, **changes):
    monkeypatch.setattr(diagnosing, "diagnose_answer", diagnoser)
    questions = [QuestionedAnswer((path,), f"what is {number} ?") for number, path in enumerate(pictures)]
    prepare_folder(out)
    reports = AnswerReports(make_guard(Toy()), questions, out, {"cells": 6})
    shown = []
    kept = replace(reports, **changes).write(
        lambda diagnosis: shown.append((diagnosis.prompt, len(diagnosis.doubtful)))
    )
    return kept, shown


def test_one_diagnosis_is_held_at_a_time(pictures, tmp_path, monkeypatch):
    diagnoser = Diagnoser()
    write(pictures, tmp_path / "out", monkeypatch, diagnoser)
    assert diagnoser.alive == [[0, 0]] * COUNT


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_never_stopped(pictures, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        write(pictures, tmp_path / "stopped", monkeypatch, Diagnoser(stop_at=5))
    assert not (tmp_path / "stopped" / "index.html").exists()
    second, whole = Diagnoser(), Diagnoser()
    kept, shown = write(pictures, tmp_path / "stopped", monkeypatch, second)
    assert (kept, len(second.prompts)) == (4, COUNT - 4)
    assert write(pictures, tmp_path / "whole", monkeypatch, whole) == (0, shown)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("stopped", "whole")]
    assert contents[0] == contents[1]
    assert write(pictures, tmp_path / "whole", monkeypatch, Diagnoser(stop_at=1)) == (COUNT, shown)


@pytest.mark.parametrize("what", ["picture", "question", "settings", "stack", "weights", "page gone", "JSON torn"])
def test_what_has_changed_is_diagnosed_again(what, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(pictures, out, monkeypatch, Diagnoser())
    changes, again = {}, COUNT
    if what == "picture":
        again = 1
        Image.new("RGB", (8, 8), "white").save(pictures[3])
    elif what == "question":
        again = 1
        changes["questions"] = [
            QuestionedAnswer((path,), f"what is {number} ?", "w81 w90" if number == 2 else None)
            for number, path in enumerate(pictures)
        ]
    elif what == "settings":
        changes["settings"] = {"cells": 7}
    elif what == "stack":
        changes["guard"] = make_guard(Toy(), "vdd")
    elif what == "weights":
        changes["guard"] = make_guard(Toy().requires_grad_(False))
        changes["guard"].model.weight.add_(1)
    else:
        again = 1
        path = out / ("answer-04.html" if what == "page gone" else "answer-04.json")
        path.write_bytes(path.read_bytes()[:20]) if what == "JSON torn" else path.unlink()
    diagnoser = Diagnoser()
    assert write(pictures, out, monkeypatch, diagnoser, **changes)[0] == COUNT - again
    assert len(diagnoser.prompts) == again


def test_a_page_that_was_replaced_before_a_stop_is_not_taken_for_its_older_figures(pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(pictures, out, monkeypatch, Diagnoser())
    with monkeypatch.context() as patch:
        patch.setattr("lvlm_guard.diagnosis.report.writing.write_figures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(pictures, out, patch, Diagnoser(), settings={"cells": 7})
    diagnoser = Diagnoser()
    write(pictures, out, monkeypatch, diagnoser)
    assert diagnoser.prompts == ["what is 0 ?"]


def test_what_a_killed_process_left_unfinished_is_no_stranger(pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".answer-01.html.x1y2.draft").write_bytes(b"half")
    write(pictures, out, monkeypatch, Diagnoser())
    assert not list(out.glob(".*"))
    (out / ".mine.draft").write_bytes(b"half")
    with pytest.raises(InputError, match="holds something else"):
        prepare_folder(out)


def test_an_answer_that_the_model_cannot_say_is_named_before_any_is_diagnosed(pictures, tmp_path, monkeypatch):
    texts = ["w81", None, "zebras \U0001f40d", "w90"]
    questions = [QuestionedAnswer((path,), "w14", text) for path, text in zip(pictures, texts, strict=False)]
    diagnoser = Diagnoser()
    with pytest.raises(InputError, match="Answer 3 of 4: The answer does not survive its tokens"):
        write(pictures, tmp_path / "out", monkeypatch, diagnoser, questions=questions)
    assert diagnoser.prompts == []


def test_an_error_says_of_which_answer_it_is(pictures, tmp_path, monkeypatch):
    def diagnose(guard, shown, prompt, **settings):
        raise InputError(f"Nothing to say to {prompt!r}.")

    with pytest.raises(InputError, match=r"^Answer 1 of 12: Nothing to say to 'what is 0 \?'"):
        write(pictures, tmp_path / "many", monkeypatch, diagnose)
    with pytest.raises(InputError, match=r"^Nothing to say"):
        write(pictures[:1], tmp_path / "one", monkeypatch, diagnose)


def test_the_index_leads_to_every_answer(pictures, tmp_path, monkeypatch):
    write(pictures, tmp_path / "out", monkeypatch, Diagnoser())
    index = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == [f"answer-{number:02d}.html" for number in range(1, COUNT + 1)]
    assert index.count("<b>mug</b> 0.750 (prior)") == COUNT
    assert index.rstrip().endswith("</html>")


def test_pages_lead_to_the_page_of_the_model(pictures, tmp_path, monkeypatch):
    figures = tmp_path / "checked" / "diagnosis.json"
    figures.parent.mkdir()
    figures.write_text("{}")
    settings, out = {"model_diagnosis": figures}, tmp_path / "out"
    write(pictures[:2], out, monkeypatch, Diagnoser(), settings=settings)
    assert "../checked" not in (out / "index.html").read_text() + (out / "answer-1.html").read_text()
    figures.with_suffix(".html").write_text("<p>")
    again = Diagnoser()
    write(pictures[:2], out, monkeypatch, again, settings=settings)
    assert len(again.prompts) == 2
    for name in ("index", "answer-1", "answer-2"):
        assert 'href="../checked/diagnosis.html"' in (out / f"{name}.html").read_text()


def test_a_diagnosis_is_read_back_without_its_maps(pictures, tmp_path, monkeypatch):
    write(pictures[:2], tmp_path / "out", monkeypatch, Diagnoser())
    values = json.loads((tmp_path / "out" / "answer-1.json").read_text())
    original = Diagnoser()(None, [], "what is 0 ?", answer=None)
    again = read_diagnosis(values, ())
    assert again.to_dict() | {"maps": None} == original.to_dict() | {"maps": None}


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "a cookbook"}, {"words": [{}]}, {"words": None}])
def test_what_is_no_diagnosis_is_refused(change, pictures, tmp_path, monkeypatch):
    write(pictures[:1], tmp_path / "out", monkeypatch, Diagnoser())
    values = json.loads((tmp_path / "out" / "answer.json").read_text())
    with pytest.raises(InputError, match="no diagnosis of an answer"):
        read_diagnosis({**values, **change}, ())
