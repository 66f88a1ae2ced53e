"""`lvlm-guard diagnose answer` and `generate --show-doubt`, as users run them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lvlm_guard.cli import app
from lvlm_guard.cli.diagnosing_answers import describe_cost, read_lines
from lvlm_guard.cli.doubt_colours import colour_words
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.world.scenes import scene

PROMPT = "describe this image ."
CHEAP = ["--no-maps", "--max-new-tokens", "24"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    scene("counterfactual", 3).picture.save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def diagnose(*arguments):
    return run("diagnose", "answer", *arguments)


def message(result):
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_a_report_is_written_and_the_answer_printed(picture, tmp_path):
    out = tmp_path / "report"
    done = diagnose("--model", "testbed", "--image", picture, "--prompt", PROMPT, "--out", out, *CHEAP)
    assert done.exit_code == 0, done.output
    values = json.loads((out / "answer.json").read_text())
    assert values["model"] == "testbed"
    assert values["answered_by"] == "model"
    doubtful = [word for word in values["words"] if word["is_doubtful"]]
    assert [word["text"] for word in doubtful] == ["blue"]
    assert "blue[0.87]" in done.output
    assert "Runs for the answer" in done.output
    assert {path.name for path in out.iterdir()} == {"answer.html", "answer.json", "answer.csv"}


def test_several_answers_come_from_a_file(picture, tmp_path):
    lines = [
        {"image": "scene.png", "prompt": PROMPT, "answer": "there is a red mug ."},
        {"image": "scene.png", "prompt": PROMPT, "answer": "there is a orange fish ."},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    out = tmp_path / "report"
    done = diagnose("--model", "testbed", "--answers", path, "--out", out, *CHEAP)
    assert done.exit_code == 0, done.output
    words = [json.loads((out / f"answer-{number}.json").read_text())["words"] for number in (1, 2)]
    doubts = [next(word["doubt"] for word in of_answer if word["level"] == "object") for of_answer in words]
    assert doubts[0] > 0.9 > 0.5 > doubts[1]
    assert (out / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "needs a model"),
        (["--model", "testbed"], "needs a picture"),
        (["--model", "testbed", "--image", "{picture}"], "needs a question"),
        (["--model", "testbed", "--image", "{picture}", "--prompt", " "], "--prompt is empty"),
        (["--model", "testbed", "--image", "{picture}", "--prompt", "a", "--answer", " "], "--answer is empty"),
        (["--model", "testbed", "--image", "/no/such.png", "--prompt", "a"], "--image"),
        (["--demo", "--prompt", "a"], "--demo brings"),
        (["--model", "testbed", "--answers", "{picture}"], "cannot be read"),
        (["--model", "testbed", "--answers", "{picture}", "--prompt", "a"], "--answers brings"),
        (["--model", "testbed", "--image", "{picture}", "--prompt", "a", "--evidence", "/no/file"], "--evidence"),
        (
            ["--model", "testbed", "--image", "{picture}", "--prompt", "a", "--model-diagnosis", "/no/file"],
            "--model-diagnosis",
        ),
    ],
)
def test_what_cannot_be_done_is_named_before_a_model_is_loaded(arguments, expected, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("lvlm_guard.loading.load", lambda *_: pytest.fail("a model was loaded"))
    filled = [argument.format(picture=picture) for argument in arguments]
    assert expected in message(diagnose(*filled, "--out", tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_a_folder_with_other_files_is_refused_before_a_model_is_loaded(picture, tmp_path, monkeypatch):
    monkeypatch.setattr("lvlm_guard.loading.load", lambda *_: pytest.fail("a model was loaded"))
    result = diagnose("--model", "testbed", "--image", picture, "--prompt", PROMPT, "--out", tmp_path)
    assert "holds something else ('scene.png')" in message(result)


def test_words_that_the_model_does_not_know_are_named(picture, tmp_path):
    result = diagnose(
        "--model", "testbed", "--image", picture, "--prompt", PROMPT, "--answer", "there is a zebra .", "--out", tmp_path / "report", *CHEAP
    )  # fmt: skip
    assert "does not survive its tokens" in message(result)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "line 1 of answers.jsonl is no JSON"),
        ("[]", "is an object with"),
        ('{"image": "scene.png"}', "prompt is text"),
        ('{"image": "no.png", "prompt": "a"}', "line 1"),
        ('{"image": "scene.png", "prompt": "a", "answer": 3}', "answer is text"),
        ('{"image": "scene.png", "prompt": "a", "truth": "b"}', "is an object with"),
        ("", "holds no answers"),
    ],
)
def test_lines_that_are_no_answers_are_named(line, expected, picture, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=expected):
        read_lines(path)


def test_generate_marks_doubtful_words(picture):
    done = run(
        "generate", "--model", "testbed", "--image", picture, "--prompt", PROMPT, "--stack", "plain", "--show-doubt", "--max-new-tokens", 24
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "blue[0.87] flag" in " ".join(done.output.split())
    both = run("generate", "--model", "testbed", "--image", picture, "--prompt", PROMPT, "--plain", "--show-doubt")
    assert "--plain and --show-doubt" in message(both)


def test_only_doubtful_words_are_coloured():
    text = colour_words("a red mug", [((0, 1), 0.1, False), ((2, 5), 0.95, True), ((6, 9), 0.6, True)])
    assert text.plain == "a red[0.95] mug[0.60]"
    assert {str(span.style) for span in text.spans} == {"bold underline dark_orange", "underline dark_orange", "dim"}


def test_cost_is_said_beforehand():
    assert "37 pictures for occlusion" in describe_cost(1, 128, 6)
    assert "occlusion" not in describe_cost(3, 128, 0)
