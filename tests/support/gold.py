"""Branches written by hand, modes of generate, and the comparison with the recomputing oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from lvlm_guard import Branch, Contrast, Generation, Guard, Insert, Plausible, Term, hookimpl
from lvlm_guard.testing import ARCHITECTURES, Oracle, Recorder, tiny
from lvlm_guard.testing.tiny import IMAGE_TOKEN, inputs_for

SUPPRESSED = [98, 99, 100, 101, 102, 103, 104]
FENCES = {102, 103}
EXTRA = (7, 9, 11)
TOLERANCE = 1e-4
WEIGHT = 1.5
Executor = Literal["auto", "batched", "sequential"]
OLD = int(transformers.__version__.split(".")[0]) < 5
ROLLS_BACK = hasattr(DynamicSlidingWindowLayer, "activate_past_recording")
CORE = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "gemma3")
IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")


def disturbed(pixels: Tensor, generator: Any = None) -> Tensor:
    """A fixed elementwise disturbance, so that a test can apply it by hand."""
    return torch.tanh(3 * pixels) + 0.7


BRANCHES: dict[str, Branch] = {
    "noised": Branch("noised", pixels=disturbed),
    "longer": Branch("longer", tokens=(Insert(EXTRA, "after_image"),)),
    "blind": Branch("blind", image="removed"),
    "masked": Branch("masked", image="masked"),
}


@dataclass(frozen=True)
class Against:
    """Contrast with one of the hand-written branches."""

    name: ClassVar[str] = "against"
    kind: str = "noised"
    weight: float = WEIGHT
    beta: float = 0.0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        yield BRANCHES[self.kind]

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        yield Contrast(self.kind, self.weight)
        if self.beta:
            yield Plausible(self.beta)


def contrast(raw: Sequence[Tensor], step: int) -> Tensor:
    main, branch = raw
    return (1 + WEIGHT) * main - WEIGHT * branch


def by_hand(kind: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The branch's inputs for one unpadded prompt, written without the library."""
    changed = dict(inputs)
    ids = inputs["input_ids"][0].tolist()
    image = [index for index, token in enumerate(ids) if token == IMAGE_TOKEN or token in FENCES]
    if kind == "noised":
        changed["pixel_values"] = disturbed(inputs["pixel_values"])
    elif kind == "longer":
        changed["input_ids"] = torch.tensor([ids[: image[-1] + 1] + list(EXTRA) + ids[image[-1] + 1 :]])
    elif kind == "blind":
        changed = {name: value for name, value in changed.items() if name not in IMAGE_INPUTS}
        changed["input_ids"] = torch.tensor([[token for index, token in enumerate(ids) if index not in image]])
    elif kind == "masked":
        changed["attention_mask"] = (inputs["input_ids"] != IMAGE_TOKEN).long()
    if kind in ("longer", "blind"):
        changed["attention_mask"] = torch.ones_like(changed["input_ids"])
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in changed:
                changed[name] = (changed["input_ids"] == IMAGE_TOKEN).long()
    return changed


@dataclass
class Case:
    """One architecture and branch kind: the model, its inputs, and the oracle that remembers what it computed."""

    architecture: str
    kind: str
    text: int = 6

    def __post_init__(self) -> None:
        self.model, _ = tiny(self.architecture)
        self.inputs = inputs_for(self.architecture, self.model, 1, text=self.text)
        self.oracle = Oracle(self.model, [self.inputs, by_hand(self.kind, self.inputs)], contrast)

    def check(self, executor: Executor, **settings: Any) -> tuple[float, float, bool]:
        """Run guarded and compare every step that generate's loop saw; (largest error, smallest effect, any change)."""
        recorder = Recorder()
        guard = Guard(self.model, None, [Against(self.kind)], executor=executor)
        torch.manual_seed(3)
        beams = settings.get("num_beams", 1) > 1
        raw = {"logits_processor": [recorder]} if beams else {"output_logits": True, "return_dict_in_generate": True}
        settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SUPPRESSED, **settings}
        output = guard.generate(**self.inputs, **settings, **raw)
        self.check_executor(executor, guard.report)
        seen = recorder.seen if beams else _steps(output)
        return self.compare(seen, beams=beams, ends=settings.get("eos_token_id"))

    def check_executor(self, executor: str, report: Any) -> None:
        """Decoding in one batch must really have happened, but for the one model that older versions rule out."""
        hidden = OLD and self.architecture == "qwen3_vl" and "rotary" in report.reason
        assert report.executor == ("sequential" if executor == "sequential" or hidden else "batched"), report.reason

    def refuses(self, mode: str) -> bool:
        """Older versions cannot roll sliding windows back, so assisted modes are refused there."""
        return not ROLLS_BACK and self.architecture == "gemma3" and mode in {"prompt lookup", "assistant"}

    def compare(
        self, seen: list[tuple[Tensor, Tensor]], *, beams: bool, ends: int | None = None
    ) -> tuple[float, float, bool]:
        """Compare (ids, scores) pairs with the oracle; beams see log-probabilities with suppressed tokens removed."""
        start = self.inputs["input_ids"].shape[1]
        errors, effects, changed = [0.0], [], False
        for ids, scores in seen:
            for row, prefix in enumerate(ids[:, start:].tolist()):
                if ends in prefix:
                    continue
                gold, main = self.oracle.logits(prefix)
                open_ = [token for token in range(gold.shape[-1]) if token not in SUPPRESSED]
                expected = gold.log_softmax(-1) if beams else gold
                errors.append(float((expected - scores[row])[open_].abs().max()))
                effects.append(float((gold - main).abs().max()))
                changed |= int(gold[open_].argmax()) != int(main[open_].argmax())
        return max(errors), min(effects), changed


def _steps(output: Any) -> list[tuple[Tensor, Tensor]]:
    """(prefix, raw logits) of every step of a run without beams."""
    prompt = output.sequences.shape[1] - len(output.logits)
    return [(output.sequences[:, : prompt + step], logits) for step, logits in enumerate(output.logits)]


MODES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "greedy": lambda case: {},
    "sampling": lambda case: {"do_sample": True},
    "returned": lambda case: {"do_sample": True, "num_return_sequences": 2},
    "beams": lambda case: {"num_beams": 3},
    "beam sample": lambda case: {"num_beams": 2, "do_sample": True},
    "prompt lookup": lambda case: {
        "prompt_lookup_num_tokens": 3,
        "max_matching_ngram_size": 1,
        "max_new_tokens": 8,
        "eos_token_id": SUPPRESSED[-1],  # 4.57 cannot look up prompts without an end token
    },
    "assistant": lambda case: {"assistant_model": case.model, "eos_token_id": SUPPRESSED[-1]},
}
__all__ = ["ARCHITECTURES", "BRANCHES", "CORE", "MODES", "TOLERANCE", "Against", "Case", "by_hand", "contrast"]
