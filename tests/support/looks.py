"""Batches of prompts that begin with the same picture, and what a look makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from lvlm_guard import Guard
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import IMAGE_TOKEN, placeholders, tiny

MAKES_POSITIONS = hasattr(GenerationMixin, "_prepare_position_ids_for_generation")
"""Whether generate makes the positions of a prompt, so that models with rope deltas can look."""
BOTH = ["llava", *(["qwen2_vl"] if MAKES_POSITIONS else [])]
"""Two architectures that can."""
RESTS = {
    "one": [[11, 12, 13, 14]],
    "rows": [[11, 12, 13, 14], [21, 22, 23, 24]],
    "ragged": [[11, 12, 13, 14], [21, 22, 23, 24, 25, 26, 27], [31]],
}
"""What stands behind the picture."""
IMAGES_IN_ROWS = ("idefics3", "mllama")
"""Whose pixels have an axis for the images of a row."""
STRATEGIES: dict[str, Any] = {
    "plain": None,
    "vcd": "vcd",
    "m3id": {"name": "m3id", "params": {"decay": 0.7}},
    "vdd": "vdd",
    "vaf": {"name": "vaf", "params": {"enhance": 4.0, "suppress": 0.2, "layers": [0, 2]}},
    "deco": {"name": "deco", "params": {"alpha": 8.0, "top_p": 1.0}},
    "dola": "dola",
    "pai": {"name": "pai", "params": {"alpha": 2.0, "gamma": 3.0, "layers": [0, 2]}},
    "memvr": {"name": "memvr", "params": {"ratio": 1.0, "threshold": 0.0, "layers": [0, 2]}},
    "vsv": {"name": "vsv", "params": {"strength": 2.0}},
    "sid": "sid",
    "avisc": "avisc",
    "sla": {"name": "sla", "params": {"gamma": 0.9}},
    "pai+vcd+vaf": "pai+vcd+vaf",
}
"""Stacks strong enough to change the logits of tiny models."""
SETTINGS = {"max_new_tokens": 4, "do_sample": False}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}
TOLERANCE = 2e-5
"""Of the largest logit; measured are 1e-6 where a batch is cut in two."""


def build(name: str, stack: Any, pictures: int = 1) -> tuple[Guard, dict[str, Any], int]:
    """Return a guard, model inputs of one prompt, and how long its beginning is, pictures included."""
    model, inputs = tiny(name)
    if pictures > 1:
        inputs = show_more(name, inputs, pictures)
    return Guard(model, TinyProcessor(name), stack), inputs, 2 + pictures * len(placeholders(name))


def show_more(name: str, inputs: dict[str, Any], pictures: int) -> dict[str, Any]:
    """Return inputs of a prompt with several pictures, one behind the other."""
    ids, image = inputs["input_ids"], torch.tensor([placeholders(name)])
    ids = torch.cat([ids[:, :2], *[image] * (pictures - 1), ids[:, 2:]], dim=1)
    changed = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for key, value in inputs.items():
        if key not in changed:
            changed[key] = _show_more(key, value, ids, pictures, dim=int(name in IMAGES_IN_ROWS))
    return changed


def _show_more(key: str, value: Tensor, ids: Tensor, pictures: int, dim: int) -> Tensor:
    if "token_type" in key:
        return (ids == IMAGE_TOKEN).long()
    if key == "cross_attention_mask":
        return torch.ones(*ids.shape, pictures, *value.shape[3:], dtype=value.dtype)
    parts = [value + number if value.is_floating_point() else value for number in range(pictures)]
    return torch.cat(parts, dim)


def continue_with(inputs: dict[str, Any], length: int, rests: list[list[int]]) -> dict[str, Any]:
    """Return a batch, padded on the left, whose prompts go on from the first `length` tokens of one."""
    longest = length + max(map(len, rests))
    rows = [inputs["input_ids"][0, :length].tolist() + rest for rest in rests]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask}
    for key, value in inputs.items():
        if key not in batch:
            batch[key] = _repeat(key, value, batch, len(rests))
    return batch


def _repeat(key: str, value: Tensor, batch: dict[str, Tensor], times: int) -> Tensor:
    if "token_type" in key:
        return (batch["input_ids"] == IMAGE_TOKEN).long()
    if key == "cross_attention_mask":
        return batch["attention_mask"][:, :, None, None].expand(-1, -1, *value.shape[2:]).clone()
    return torch.cat([value] * times)


def error_between(logits: Any, others: Any) -> float:
    """Return the largest difference of two runs as a share of the largest logit that no strategy removed."""
    pairs = [(left.float(), right.float()) for left, right in zip(logits, others, strict=True)]
    likely = [(left, right, (left > -1e4) & (right > -1e4)) for left, right in pairs]
    assert all(torch.equal(left > -1e4, right > -1e4) for left, right in pairs)
    return max(float((left - right)[mask].abs().max() / right[mask].abs().max()) for left, right, mask in likely)


def run_both(
    guard: Guard, inputs: dict[str, Any], length: int, rests: list[list[int]], **settings: Any
) -> tuple[Any, Any]:
    """Return what guard and look generate from the same batch; the look has answered once before."""
    batch = continue_with(inputs, length, rests)
    expected = guard.generate(**batch, **{**SETTINGS, **settings})
    with guard.looking(inputs) as look:
        look.generate(**continue_with(inputs, length, [[41, 42]]), max_new_tokens=1)
        return expected, look.generate(**batch, **{**SETTINGS, **settings})
