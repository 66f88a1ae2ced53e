"""What guarding should cost on a machine: arithmetic on bytes and operations, not a measurement.

A decode step must read the weights once per forward and the keys and values of every row; a prefill must do its
multiplications. Both give a floor: kernel launches, Python and everything else come on top. At small batches plain
generate is usually bound by launches, so measured ratios can lie on either side of the predicted ones; only a measurement
(`lvlm_guard.bench.running.cost`) says how far the floor is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.running.shapes import Shape
from lvlm_guard.errors import InputError


@dataclass(frozen=True)
class Target:
    """A machine.

    Args:
        name: What predictions call it.
        bandwidth: Memory bandwidth in bytes per second.
        flops: Dense floating-point operations per second in the weights' dtype, by the data sheet.
        efficiency: Share of `flops` that matrix products reach, an assumption.
    """

    name: str
    bandwidth: float
    flops: float
    efficiency: float = 0.6

    def seconds(self, read: float, operations: float) -> float:
        """Return the longer of reading `read` bytes and doing `operations`."""
        return max(read / self.bandwidth, operations / (self.flops * self.efficiency))


H100_SXM = Target("H100 SXM", 3.35e12, 989e12)
H200 = Target("H200", 4.8e12, 989e12)
A100 = Target("A100 80GB SXM", 2.0e12, 312e12)
TARGETS: Mapping[str, Target] = {"a100": A100, "h100": H100_SXM, "h200": H200}
"""Machines by the names that the command line takes. Bandwidth and bfloat16 operations are those of the data sheets."""


@dataclass(frozen=True)
class BranchLength:
    """How long the context of a branch is.

    Args:
        name: What predictions call it.
        image: Share of main's image tokens that it keeps.
        text: Text tokens that it adds to main's prompt; negative where it has fewer.
        encodes: Whether it encodes a picture of its own.
    """

    name: str
    image: float = 1.0
    text: int = 0
    encodes: bool = True


NOISE = BranchLength("noise branch")
IMAGE_FREE = BranchLength("image-free branch", image=0.0, encodes=False)
MAIN = BranchLength("main")


@dataclass(frozen=True)
class Prediction:
    """Floors of one way to generate on one machine, and of plain generate there: arithmetic, not a measurement.

    Args:
        shape: Name of the model.
        target: Name of the machine.
        executor: How the branches are decoded: `batched`, `sequential`, or `none` for plain generate.
        batch: Rows of plain generate.
        prompt_tokens: Length of main's prompt, image included.
        image_tokens: Image tokens of it.
        generated: Generated positions in the cache at the predicted step.
        step_ms: Milliseconds of a decode step.
        prefill_ms: Milliseconds of the prefill of main and, one after another, of the branches, images encoded.
        plain_step_ms: The same step of plain generate.
        plain_prefill_ms: The prefill of plain generate.
    """

    shape: str
    target: str
    executor: str
    batch: int
    prompt_tokens: int
    image_tokens: int
    generated: float
    step_ms: float
    prefill_ms: float
    plain_step_ms: float
    plain_prefill_ms: float

    @property
    def ratio(self) -> float:
        """Decode step over plain's."""
        return self.step_ms / self.plain_step_ms

    @property
    def prefill_ratio(self) -> float:
        """Prefill over plain's."""
        return self.prefill_ms / self.plain_prefill_ms

    def answer_ms(self, steps: int) -> float:
        """Return the milliseconds of a prefill and `steps` decode steps, each taken to cost the predicted one."""
        return self.prefill_ms + steps * self.step_ms

    def answer_ratio(self, steps: int) -> float:
        """Return a whole answer, a prefill and `steps` decode steps, over plain's."""
        return self.answer_ms(steps) / (self.plain_prefill_ms + steps * self.plain_step_ms)


def predict(
    shape: Shape,
    target: Target,
    branches: Sequence[BranchLength] = (),
    batch: int = 1,
    *,
    prompt: int = 64,
    generated: float = 128,
    batched: bool = True,
    padded: bool = False,
) -> Prediction:
    """Predict the floor of a decode step and of the prefill from sizes alone. Nothing is run.

    Args:
        shape: The model.
        target: The machine.
        branches: Further contexts that every row is decoded in; none is plain generate.
        batch: Rows of plain generate, at least 1.
        prompt: Text tokens of main's prompt; the image's come on top.
        generated: Generated positions in the cache. For a mean over an answer, half its length.
        batched: Branches are rows of main's forward, which reads the weights once; else every branch has its own forward.
        padded: Rows of one forward are all as long as the longest, as with left padding; only where batched.

    Raises:
        InputError: A batch below 1, or a branch whose context is not positive.
    """
    rows = (MAIN, *branches)
    contexts = [_context(shape, branch, prompt) for branch in rows]
    if batch < 1 or min(contexts) <= 0:
        raise InputError(f"predict needs batch >= 1 and prompts of positive length, got {batch} and {contexts}.")
    cached = [context + generated for context in contexts]
    if batched and padded:
        cached = [max(cached)] * len(cached)
    forwards = [cached] if batched else [[positions] for positions in cached]
    passes = [
        _prefill(shape, target, batch, context, encodes=branch.encodes)
        for context, branch in zip(contexts, rows, strict=True)
    ]
    return Prediction(
        shape=shape.name,
        target=target.name,
        executor=_executor(branches, batched=batched),
        batch=batch,
        prompt_tokens=prompt + shape.image_tokens,
        image_tokens=shape.image_tokens,
        generated=generated,
        step_ms=sum(_step(shape, target, batch, positions) for positions in forwards) * 1e3,
        prefill_ms=sum(passes) * 1e3,
        plain_step_ms=_step(shape, target, batch, [contexts[0] + generated]) * 1e3,
        plain_prefill_ms=passes[0] * 1e3,
    )


def _context(shape: Shape, branch: BranchLength, prompt: int) -> float:
    return branch.image * shape.image_tokens + prompt + branch.text


def _step(shape: Shape, target: Target, batch: int, cached: Sequence[float]) -> float:
    """Return the seconds of one forward with a row per request and context; `cached` holds positions."""
    read = shape.weight_bytes + batch * sum(cached) * shape.position_bytes
    return target.seconds(read, batch * sum(shape.step_flops(positions) for positions in cached))


def _prefill(shape: Shape, target: Target, batch: int, positions: float, *, encodes: bool) -> float:
    """Return the seconds of a prefill as a pass of its own, and of encoding its images."""
    decoder = target.seconds(shape.weight_bytes, batch * shape.prefill_flops(positions))
    images = batch * shape.vision.flops(shape.image_tokens) if shape.vision is not None and encodes else 0.0
    return decoder + target.seconds(0.0, images)


def _executor(branches: Sequence[BranchLength], *, batched: bool) -> str:
    """Return the word that the report of a guarded call uses."""
    if not branches:
        return "none"
    return "batched" if batched else "sequential"
