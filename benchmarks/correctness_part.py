"""On the chosen device: every kernel against its reference, and guarded logits against a recompute from scratch."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel_checks
import torch
from lvlm_guard_contrastive import M3ID, VCD
from measuring import Budget, Results, Row, machine, versions
from torch import Tensor
from variants import OUT_OF_TIME

from lvlm_guard import Guard, NoEffectWarning, Refused
from lvlm_guard.request import images
from lvlm_guard.testing import ARCHITECTURES, Oracle, Recorder, tiny

TOLERANCE, EFFECT = 1e-3, 0.1
ALPHA, DECAY = 1.0, 0.3
IMAGE_TOKEN, FENCES = 100, (102, 103)
SPECIAL = [98, 99, 100, 101, 102, 103, 104]
SHOWN = (
    "kernel", "case", "architecture", "strategy", "executor", "mode", "ran", "steps", "largest_difference", "plain_difference", "smallest_effect",
    "largest_effect", "status",
)  # fmt: skip
NOTES = (
    "fp32, TF32 off. Every step that generate's loop saw is compared with the formula over full forwards, no cache.",
    "Beams are compared after log-softmax, as generate sees them.",
    (
        f"`failed` is a difference above {TOLERANCE:g}; `no power` is a comparison that proves little, because the "
        f"strategy moves no logit by more than {EFFECT:g} at some step."
    ),
    (
        "plain difference: the same comparison without a guard. Above the tolerance, this model cannot be recomputed by "
        "appending tokens to the prompt (attention within the prompt is bidirectional), so its rows are not comparable."
    ),
    "`refused` is the library's own answer where a mode cannot be exact.",
    (
        f"Rows with a kernel compare it with its fp32 reference: relative to what is wanted, at most {kernel_checks.TOLERANCE:g}; "
        "NaN and infinities are equal; greedy ids are equal, and of drawn ids, where one rounding of an exponential may move "
        f"a draw, at most {kernel_checks.OTHER_IDS:g} differ. Repeats are equal to the bit."
    ),
)
MODES: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 3}}
STRATEGIES: dict[str, Any] = {"vcd": VCD(alpha=ALPHA, beta=0.0), "m3id": M3ID(decay=DECAY, beta=0.0)}


class OnDevice:
    """A model that takes its inputs from anywhere.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, **arguments: Any) -> Any:
        """Generate with every tensor moved to the model's device."""
        return self._model.generate(**placed(arguments, self._model.device))


def placed(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Arguments with their tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def with_noise(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with the noised pixels of VCD."""
    branch = next(iter(STRATEGIES["vcd"].branches(None)))
    pixels, grid = inputs["pixel_values"], inputs.get("image_grid_thw")
    noised = images.edit_pixels("pixel_values", pixels, grid, model.config, branch.pixels, branch.seed)
    return {**inputs, "pixel_values": noised}


def without_image(_: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of one row without the image and what fences it, written without the library."""
    image = torch.isin(inputs["input_ids"], torch.tensor([IMAGE_TOKEN, *FENCES]))
    ids = inputs["input_ids"][~image][None]
    aligned = {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    others = {name: value for name, value in inputs.items() if name.startswith("qformer")}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **aligned, **others}


def formula(strategy: str, raw: Sequence[Tensor], step: int) -> Tensor:
    """The published formula of a strategy over the raw logits of main and its branch."""
    main, branch = raw
    weight = ALPHA if strategy == "vcd" else math.exp(DECAY * (step + 1)) - 1
    return main + weight * (main - branch)


@dataclass
class Subject:
    """One architecture under one strategy, with the oracle that remembers what it computed.

    Args:
        architecture: Name in the test kit.
        strategy: Name of the strategy.
        device: Where the model runs.
        new_tokens: Tokens per call.
    """

    architecture: str
    strategy: str
    device: torch.device
    new_tokens: int

    def __post_init__(self) -> None:
        model, self.inputs = tiny(self.architecture)
        self.model: Any = model
        branch = (with_noise if self.strategy == "vcd" else without_image)(self.model, self.inputs)
        self.model.to(self.device)
        self.oracle = Oracle(
            OnDevice(self.model), [self.inputs, branch], lambda raw, step: formula(self.strategy, raw, step)
        )
        self.plain = self._plain_difference()

    def check(self, executor: Any, mode: str) -> Row:
        """Run guarded once and compare every step."""
        recorder = Recorder()
        guard = Guard(self.model, stack=[STRATEGIES[self.strategy]], executor=executor)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoEffectWarning)  # the row's effect says it
                guard.generate(**self._arguments(mode, recorder))
        except Refused as refusal:
            return {"status": f"refused: {refusal}"}
        row = self._compare(recorder, beams=mode == "beams")
        return {**row, "ran": guard.report.executor}

    def _plain_difference(self) -> float:
        """How far plain generate itself is from a recompute."""
        recorder = Recorder()
        self.model.generate(**self._arguments("greedy", recorder))
        oracle = Oracle(OnDevice(self.model), [self.inputs], lambda raw, _: raw[0])
        return max(_distance(oracle.logits(prefix)[1], scores) for prefix, scores in self._steps(recorder))

    def _arguments(self, mode: str, recorder: Recorder) -> dict[str, Any]:
        settings = {"max_new_tokens": self.new_tokens, "do_sample": False, "suppress_tokens": SPECIAL, **MODES[mode]}
        return {**placed(self.inputs, self.device), **settings, "logits_processor": [recorder]}

    def _compare(self, recorder: Recorder, *, beams: bool) -> Row:
        differences, effects = [], []
        for prefix, scores in self._steps(recorder):
            wanted, main = self.oracle.logits(prefix)
            differences.append(_distance(wanted.log_softmax(-1) if beams else wanted, scores))
            effects.append(_distance(wanted, main))
        found = {"steps": len(recorder.seen), "largest_difference": max(differences), "plain_difference": self.plain}
        found |= {"smallest_effect": min(effects), "largest_effect": max(effects)}
        return {**found, "status": _verdict(found)}

    def _steps(self, recorder: Recorder) -> Iterator[tuple[list[int], Tensor]]:
        """Generated tokens and scores `[vocab]` of every row of every step."""
        start = self.inputs["input_ids"].shape[1]
        for ids, scores in recorder.seen:
            yield from zip(ids[:, start:].tolist(), scores, strict=True)


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest difference over tokens that may be generated."""
    allowed = torch.ones(one.shape[-1], dtype=torch.bool, device=one.device)
    allowed[SPECIAL] = False
    return float((one - other.to(one.device))[allowed].abs().nan_to_num(torch.inf, torch.inf).max())


def _verdict(found: Row) -> str:
    if found["plain_difference"] > TOLERANCE:
        return f"not comparable: plain generate differs from the recompute by {found['plain_difference']:.3g}"
    if found["largest_difference"] > TOLERANCE:
        return f"failed: differs from the recompute by {found['largest_difference']:.3g}"
    return "ok" if found["smallest_effect"] > EFFECT else f"no power: effect {found['smallest_effect']:.3g}"


def run(out: Path, device: torch.device, *, tiny: bool, seconds: float) -> Results:
    """Check every architecture, strategy, executor and mode."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    budget = Budget(seconds)
    every = {"gpu_name": machine(device)["gpu_name"], **versions(), "dtype": "float32"}
    results = Results(out, "correctness", "Kernels and guarded logits", machine(device), SHOWN, every, notes=[*NOTES])
    for row in kernel_checks.rows(device, budget.share(2), tiny=tiny):
        results.add(**row)
    results.write()
    architectures = ("llava", "qwen2_5_vl") if tiny else tuple(ARCHITECTURES)
    for architecture, strategy in itertools.product(architectures, STRATEGIES):
        for row in _rows(architecture, strategy, device, 3 if tiny else 6, budget):
            results.add(architecture=architecture, strategy=strategy, **row)
        results.write()
    return results


def _rows(architecture: str, strategy: str, device: torch.device, new_tokens: int, budget: Budget) -> list[Row]:
    cases = [{"executor": executor, "mode": mode} for executor in ("batched", "sequential") for mode in MODES]
    try:
        subject = Subject(architecture, strategy, device, new_tokens) if budget.left else None
    except Exception as problem:  # noqa: BLE001 - one architecture must not hide the others
        return [{**case, "status": f"failed: {type(problem).__name__}: {problem}"} for case in cases]
    return [{**case, **_checked(subject, case, budget)} for case in cases]


def _checked(subject: Subject | None, case: Row, budget: Budget) -> Row:
    if subject is None or not budget.left:
        return {"status": OUT_OF_TIME}
    try:
        return subject.check(case["executor"], case["mode"])
    except Exception as problem:  # noqa: BLE001 - one case must not hide the others
        return {"status": f"failed: {type(problem).__name__}: {problem}"}
