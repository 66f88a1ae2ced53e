"""What answers cost in forward-equivalents: forwards of one row through the decoder, where plain generate's are 1.

A prefill and a decode step of plain generate are a forward each. The run counts the forwards of a stack; the cost model
says how much of a forward a shorter context is, such as a prompt without its image, and what reading inner layers adds:
each is one more product with the head. So a cost needs no clock, and is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.bench.running.branch_lengths import read_branches, sketch_request
from lvlm_guard.bench.running.cost_model import BranchLength
from lvlm_guard.bench.running.shapes import Shape
from lvlm_guard.errors import GuardError
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.strategy.edits import readout_layers
from lvlm_guard.strategy.generation import Generation


@dataclass(frozen=True)
class AnswerCost:
    """What answers cost; 1 is plain generate.

    Args:
        prefill: Forward-equivalents of the prefill.
        decode: Forward-equivalents of a token after the first.
        answer: Of a whole answer of this length over plain generate's answer to the same.
        clock: Time over plain generate's for the same batches, on the machine that ran them; other work counts.
    """

    prefill: float
    decode: float
    answer: float
    clock: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values."""
        return {"prefill": self.prefill, "decode": self.decode, "answer": self.answer, "clock": self.clock}


@dataclass(frozen=True)
class CostSketch:
    """What the cost model says of a stack before it runs.

    Args:
        branches: Lengths of its branches, as shares of main's prompt.
        heads: Forward-equivalents that reading inner layers adds to a decode step.
    """

    branches: tuple[float, ...] = ()
    heads: float = 0.0

    @property
    def saved(self) -> float:
        """How much less than a forward each the prefills of the branches are, together."""
        return sum(1 - share for share in self.branches)

    def predict(self, steps: float) -> float:
        """Return the least that answers of so many decode steps cost over plain generate's."""
        prefill, decode = 1 + sum(self.branches), 1 + len(self.branches) + self.heads
        return (prefill + steps * decode) / (1 + steps)


@dataclass(frozen=True)
class CostModel:
    """Reads costs off stacks, for one model and prompts of one length.

    Args:
        shape: Sizes of the model; None where its config does not say them: all branches then count as whole forwards.
        prompt: Text tokens of a prompt.
        config: The model's config.
        tokenizer: Its tokenizer.
    """

    shape: Shape | None
    prompt: int
    config: Any = None
    tokenizer: Any = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, prompts: Sequence[str]) -> CostModel:
        """Read the sizes of a model, and the mean length of some prompts."""
        lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        try:
            shape: Shape | None = Shape.of(model.config)
        except (GuardError, AttributeError):  # configs name their sizes as they like
            shape = None
        return cls(shape, max(round(sum(lengths) / max(len(lengths), 1)), 1), model.config, tokenizer)

    def sketch(self, stack: Stack) -> CostSketch:
        """Return what is known of a stack before a call; nothing where it can only be known in one."""
        if self.shape is None:
            return CostSketch()
        request = sketch_request(self.shape, self.prompt, self.config, self.tokenizer)
        try:
            lengths = read_branches(stack, request)
            heads = sum(_count_heads(strategy, request) for strategy in stack)
        except GuardError:
            return CostSketch()
        head = self.shape.vocabulary * self.shape.width / self.shape.weights
        return CostSketch(tuple(self._share(self.shape, length) for length in lengths), heads * head)

    def _share(self, shape: Shape, branch: BranchLength) -> float:
        main = shape.image_tokens + self.prompt
        return min(max((branch.image * shape.image_tokens + self.prompt + branch.text) / main, 0.0), 1.0)


def _count_heads(strategy: object, request: Generation) -> int:
    """Return how many inner layers a strategy reads at every step."""
    calls = StrategyCalls([strategy])
    readouts = calls.call("readouts", request)[calls.names[0]] if calls.active("readouts") else []
    return sum(len(readout_layers(readout, request.model.depth)) for readout in readouts)


def measure_cost(
    costs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], sketch: CostSketch
) -> AnswerCost:
    """Return what the batches of a run cost beside plain generate's.

    Args:
        costs: Of the stack, batch by batch, as a run keeps them.
        plain: Of plain generate, for the same batches.
        sketch: What the cost model says of the stack.
    """
    by_batch = {cost["batch"]: cost for cost in plain}
    pairs = [(cost, by_batch[cost["batch"]]) for cost in costs if cost["batch"] in by_batch]
    if not pairs:
        return AnswerCost(1.0, 1.0, 1.0, 1.0)
    rows = sum(base["rows"] for _, base in pairs)
    prefill = sum(base["rows"] * _prefill(cost, base, sketch) for cost, base in pairs) / rows
    steps = [(_steps(cost), _decode(cost, base, sketch)) for cost, base in pairs]
    all_steps = sum(number for number, _ in steps)
    decode = sum(number * weight for number, weight in steps) / all_steps if all_steps else 1.0
    spent = rows * prefill + all_steps * decode
    return AnswerCost(
        prefill=prefill,
        decode=decode,
        answer=spent / (rows + sum(_steps(base) for _, base in pairs)),
        clock=sum(cost["seconds"] for cost in costs) / max(sum(base["seconds"] for base in plain), 1e-9),
    )


def _prefill(cost: Mapping[str, Any], base: Mapping[str, Any], sketch: CostSketch) -> float:
    return max(cost["prefill"] / max(base["prefill"], 1.0) - sketch.saved, 1.0)


def _decode(cost: Mapping[str, Any], base: Mapping[str, Any], sketch: CostSketch) -> float:
    if not cost["decode"] or not base["decode"]:
        return 1.0
    rows = cost["rows_per_forward"] / base["rows_per_forward"]
    return float(cost["decode"] / base["decode"] * rows + sketch.heads)


def _steps(cost: Mapping[str, Any]) -> int:
    """Return the decode steps of all rows of a batch: its tokens but the first of each row."""
    return max(int(cost["tokens"]) - int(cost["rows"]), 0)


def count_steps(costs: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean decode steps of an answer."""
    return sum(_steps(cost) for cost in costs) / max(sum(int(cost["rows"]) for cost in costs), 1)
