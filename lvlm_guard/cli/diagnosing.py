"""`lvlm-guard diagnose`: what is wrong with a model, or with an answer."""

from __future__ import annotations

from lvlm_guard.cli import diagnosing_answers
from lvlm_guard.cli.program import Program

app = Program(name="diagnose", no_args_is_help=True, help="Say what is wrong with a model, or with an answer.")
app.command("answer")(diagnosing_answers.answer)
