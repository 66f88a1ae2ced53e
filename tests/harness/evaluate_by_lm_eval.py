"""Run lm-evaluation-harness on the bundled model as users would, and print the results as JSON.

Arguments: the folder of the task, the stack file, and `class` (GuardedLM), `attached` (the harness's own class inside
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


def main(tasks: str, stack: str, mode: str) -> None:
    model, processor = testbed.load()
    guard = Guard(model, processor, stack)
    evaluated = GuardedLM(guard, batch_size=4) if mode == "class" else HFMultimodalLM(pretrained=model, batch_size=4)
    with guard.attached() if mode == "attached" else contextlib.nullcontext():
        evaluation = simple_evaluate(
            model=evaluated,
            tasks=["drawn"],
            task_manager=TaskManager(include_path=tasks, include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
        )
    samples = sorted(evaluation["samples"]["drawn"], key=lambda sample: sample["doc_id"])
    results = {
        "answers": [sample["resps"][0][0].strip() for sample in samples],
        "config": evaluation["config"].get("lvlm_guard"),
        "score": evaluation["results"]["drawn"]["guard_score,none"],
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
