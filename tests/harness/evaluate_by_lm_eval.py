"""Runs lm-evaluation-harness on the bundled model as users would, and prints what came out as JSON.

Arguments: the folder of the task, the stack file, and `class` (GuardedLM), `attached` (the harness' own class inside
`guard.attached()`) or `plain` (no guard).
"""

from __future__ import annotations

import contextlib
import json
import sys

from lm_eval import simple_evaluate
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.tasks import TaskManager

from lvlm_guard import Guard, testbed
from lvlm_guard.harness.lm_eval import GuardedLM


def main(tasks: str, stack: str, way: str) -> None:
    model, processor = testbed.load()
    guard = Guard(model, processor, stack)
    asked = GuardedLM(guard, batch_size=4) if way == "class" else HFMultimodalLM(pretrained=model, batch_size=4)
    with guard.attached() if way == "attached" else contextlib.nullcontext():
        found = simple_evaluate(
            model=asked,
            tasks=["drawn"],
            task_manager=TaskManager(include_path=tasks, include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
        )
    samples = sorted(found["samples"]["drawn"], key=lambda one: one["doc_id"])
    told = {
        "answers": [one["resps"][0][0].strip() for one in samples],
        "config": found["config"].get("lvlm_guard"),
        "score": found["results"]["drawn"]["guard_score,none"],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
