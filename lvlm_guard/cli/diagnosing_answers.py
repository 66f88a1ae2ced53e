"""`lvlm-guard diagnose answer`: which words of an answer can be trusted, and what is known of why the others were said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.cli.answer_reports import AnswerReports, QuestionedAnswer
from lvlm_guard.cli.options import Allow, Device, Dtype, Stack
from lvlm_guard.cli.questions import check_picture, check_placeholder, check_question, readable_model_errors
from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import is_file

if TYPE_CHECKING:
    from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
    from lvlm_guard.guard import Guard

DEMO_SCENES = 6
DEMO_PROMPT = "describe this image ."
ADVICE = " Try another picture or --prompt."


def answer(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the report; a new one, or an earlier report's.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A local folder, a hub id, or 'testbed' for the bundled model."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The question or instruction.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeat for several.")] = None,
    answer_text: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="The answer.", show_default="the model's own, greedy")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Several answers: lines of JSON, {"image": ..., "prompt": ..., "answer": ...}; answer may be missing.',
        ),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Captions of the bundled model about drawn scenes; no other option is needed."),
    ] = False,
    stack: Stack = "plain",
    allow: Allow = None,
    evidence: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A head that lvlm-guard fit evidence fitted: what the picture's tokens show."
        ),
    ] = None,
    model_diagnosis: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A diagnosis of the model as JSON: its fault is named as a possible cause."),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Doubt from which a word is doubtful.")] = 0.5,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Attention, logit lens and occlusion as pictures.")
    ] = True,
    cells: Annotated[
        int, typer.Option(min=0, max=32, help="Cells a side that occlusion covers in turn; 0 covers none.")
    ] = 6,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=5000, help="Length limit of the model's own answer.")] = 128,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Say for every word of an answer how doubtful it is, with causes in words and a report to look at.

    DIR gets a page that needs no network, the same figures as JSON and CSV, and an index where there are several answers. Stopped
    among several, the same command goes on where it was. No part of the model is blamed by one picture: `lvlm-guard diagnose model` does that, and --model-diagnosis takes its result.
    """
    questions = _read_questions(demo, model, prompt, image or [], answer_text, answers)
    from lvlm_guard.diagnosis.report.files import opened_folder  # noqa: PLC0415 - slow to import

    settings: dict[str, Any] = {
        "artefact": evidence,
        "model_diagnosis": model_diagnosis,
        "threshold": threshold,
        "maps": maps,
        "cells": cells,
    }
    _check_files(evidence, model_diagnosis)
    with opened_folder(out):
        guard = _build_guard(model or loading.BUNDLED, stack, allow, device, dtype)
        for question in questions:
            check_placeholder(question.prompt, guard.processor)
        typer.echo(describe_cost(len(questions), max_new_tokens, cells if maps else 0), err=True)
        settings |= {"max_new_tokens": max_new_tokens, "name": model or loading.BUNDLED}
        reports = AnswerReports(guard, questions, out, settings, (evidence, model_diagnosis))
        with readable_model_errors(ADVICE):
            done_before = reports.write(_show)
    if done_before:
        typer.echo(f"{done_before} of {len(questions)} reports were there already.", err=True)
    typer.echo(f"{out / ('index.html' if len(questions) > 1 else 'answer.html')}")


def _read_questions(
    demo: bool,
    model: str | None,
    prompt: str | None,
    images: Sequence[Path],
    text: str | None,
    answers: Path | None,
) -> list[QuestionedAnswer]:
    """Return what is diagnosed; refuse what can be refused before a model is loaded."""
    if demo:
        if model not in (None, loading.BUNDLED) or prompt or images or text or answers:
            raise InputError(
                "--demo brings model, pictures and prompt: leave --model, --image, --prompt, --answer and --answers out."
            )
        return _draw_demo()
    if model is None:
        raise InputError("diagnose answer needs a model: add --model MODEL, or --demo.")
    if answers is not None:
        if prompt or images or text:
            raise InputError(
                "--answers brings pictures, prompts and answers: leave --image, --prompt and --answer out."
            )
        return read_lines(answers)
    if not images:
        raise InputError(
            "diagnose answer needs a picture: add --image FILE. Without one there is nothing to check an answer against."
        )
    if prompt is None:
        raise InputError("diagnose answer needs a question: add --prompt TEXT.")
    check_question(prompt)
    opened = tuple(check_picture(picture) for picture in images)
    if text is not None and not text.strip():
        raise InputError("--answer is empty. Leave it out to diagnose the model's own answer.")
    return [QuestionedAnswer(tuple(images), prompt, text, opened)]


def _draw_demo() -> list[QuestionedAnswer]:
    """Return scenes that break a habit, and scenes that keep them."""
    from lvlm_guard.testbed.world.scenes import scenes  # noqa: PLC0415 - slow to import

    drawn = [*scenes("counterfactual", DEMO_SCENES), *scenes("iid", DEMO_SCENES // 3)]
    return [QuestionedAnswer((scene.picture,), DEMO_PROMPT) for scene in drawn]


def read_lines(path: Path) -> list[QuestionedAnswer]:
    """Return the answers of a file of JSON lines; pictures lie relative to it.

    Raises:
        InputError: It cannot be read, or a line of it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--answers: {quote(str(path))} cannot be read: {error}.") from error
    questions = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise InputError(f"--answers: {quote(str(path))} holds no answers.")
    return questions


def _read_line(path: Path, number: int, line: str) -> QuestionedAnswer:
    place = f"--answers: line {number} of {path.name}"
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is no JSON: {error}.") from error
    kinds = {"image": (str,), "prompt": (str,), "answer": (str, type(None))}
    if not isinstance(values, dict) or values.keys() - kinds.keys():
        raise InputError(f"{place} is an object with image, prompt and answer, got {quote(values)}.")
    for name, types in kinds.items():
        if not isinstance(values.get(name), types):
            raise InputError(f"{place}: {name} is text, got {quote(values.get(name))}.")
    picture = path.parent / values["image"]
    try:
        check_question(values["prompt"])
        check_picture(picture)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return QuestionedAnswer((picture,), values["prompt"], values.get("answer"))


def _check_files(evidence: Path | None, model_diagnosis: Path | None) -> None:
    for option, path in (("--evidence", evidence), ("--model-diagnosis", model_diagnosis)):
        if path is not None and not is_file(path):
            raise InputError(f"{option}: there is no file {quote(str(path))}.")


def _build_guard(model: str, stack: str, allow: list[str] | None, device: str | None, dtype: str) -> Guard:
    loading.quieten()
    from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - slow to import
    from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - as above

    strategies = stacks.Stack.of(stack, allow=allow or ())
    loaded, processor = loading.load(model, device, dtype)
    check_chat_template(processor)
    return Guard(loaded, processor, strategies)


def describe_cost(answers: int, tokens: int, cells: int) -> str:
    """Return what a diagnosis runs at most, in words."""
    each = [
        f"one generation of up to {tokens} tokens and one more with its image-free branch",
        "a question for each word about the picture",
    ]
    if cells:
        each.append(f"one prefill for the logit lens, and {cells * cells + 1} pictures for occlusion")
    return f"Runs for {'the answer' if answers == 1 else f'each of {answers} answers'}: {'; '.join(each)}."


def _show(diagnosis: AnswerDiagnosis) -> None:
    """Print an answer with its doubtful words marked, and why."""
    from rich.console import Console  # noqa: PLC0415 - only for this

    from lvlm_guard.cli.doubt_colours import colour_words  # noqa: PLC0415 - as above

    console = Console(highlight=False)
    spans = [(word.span, word.doubt, word.is_doubtful) for word in diagnosis.words]
    console.print(colour_words(diagnosis.answer, spans))
    for word in diagnosis.doubtful:
        causes = ", ".join(cause.name for cause in word.causes)
        console.print(f"  {word.text}: doubt {word.doubt:.2f} by {word.by}; {causes}", markup=False)
    for line in diagnosis.partial:
        console.print(f"  {line}", markup=False)
