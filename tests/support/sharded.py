"""What processes do that run every forward together: answer prompts of their own, which end at different lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gold import SUPPRESSED, Against
from mechanisms import MECHANISMS
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.cache_utils import DynamicCache

from lvlm_guard import Guard
from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import inputs_for

LONGEST = 8
STACKS: dict[str, list[Any]] = {kind: [Against(kind)] for kind in ("noised", "longer", "blind")} | {
    name: stack for name, stack in MECHANISMS.items() if name not in ("branch", "search")
}
GREEDY = {"max_new_tokens": LONGEST, "do_sample": False, "suppress_tokens": SUPPRESSED}


class OwnCache(DynamicCache):  # type: ignore[misc]  # transformers tells no types
    """A cache of a kind that is not joined."""


@dataclass(frozen=True)
class Call:
    """One call that every process makes.

    Args:
        stack: Name of a stack of `STACKS`.
        settings: Settings of all.
        of_second: What makes settings of the second process alone, anew for each answer.
        ends: The token that ends the answer of each process; none where its number of tokens does.
    """

    stack: str
    settings: dict[str, Any] = field(default_factory=dict)
    of_second: dict[str, Callable[[], Any]] = field(default_factory=dict)
    ends: tuple[int, ...] = ()


@functools.cache
def prompt(rank: int) -> dict[str, Tensor]:
    """Return the prompt of a process."""
    return inputs_for("llava", tiny("llava")[0], 1, text=4 + 3 * rank, seed=rank)


def answer(rank: int, model: Any, call: Call, **more: Any) -> tuple[list[int], Any]:
    """Answer the prompt of a process; ids of the answer, and the report."""
    guard = Guard(model, None, STACKS[call.stack])
    torch.manual_seed(rank)
    own = {name: make() for name, make in call.of_second.items()} if rank else {}
    settings = {**GREEDY, **call.settings, **own, **more}
    output, report = guard.generate_with_report(**prompt(rank), **settings)
    assert report is not None
    return output[0, report.answer_start :].tolist(), report


def answer_alone(call: Call, count: int) -> tuple[Call, list[list[int]]]:
    """Return the call with an end for each process at another place, and what one process answers to all prompts."""
    model, _ = tiny("llava")
    free = [answer(rank, model, call)[0] for rank in range(count)]
    ends = tuple(ids[1 + 3 * rank] for rank, ids in enumerate(free))
    lengths = {ids.index(end) for ids, end in zip(free, ends, strict=True)}
    ended = dataclasses.replace(call, ends=ends if len(lengths) == count else ())
    return ended, [answer(rank, model, ended, **end(rank, ended))[0] for rank in range(count)]


def end(rank: int, call: Call) -> dict[str, Any]:
    """Return settings that end the answer of a process: by a token, or by its number of tokens."""
    return {"eos_token_id": call.ends[rank]} if call.ends else {"max_new_tokens": 3 + 4 * rank}


def answer_together(rank: int, count: int, way: str, calls: list[Call]) -> list[dict[str, Any]]:
    """Make the calls with other processes at the side, whose prompts and ends are others."""
    model, _ = tiny("llava")
    meetings: list[None] = []
    results = []
    with _shard(model, way, count, meetings) as sharded:
        in_step = {"synced_gpus": True} if way == "replicated" else {}
        for call in calls:
            meetings.clear()
            more = {**end(rank, call), **in_step}
            ids, report = answer(rank, sharded, call, **more)
            forwards = len(meetings)
            with Guard(sharded, None, STACKS[call.stack]).attached():
                torch.manual_seed(rank)
                again = sharded.generate(**prompt(rank), **{**GREEDY, **call.settings, **more})
            results.append(
                {
                    "answer": ids,
                    "attached": again[0].tolist()[-len(ids) :],
                    "executor": report.executor,
                    "reason": report.reason,
                    "forwards": forwards,
                }
            )
    return results


@contextmanager
def _shard(model: Any, way: str, count: int, meetings: list[None]) -> Iterator[Any]:
    """Share the weights of a model among processes, or let its copies meet in every forward as if they did."""
    layers, tower = model.model.language_model.layers, model.model.vision_tower
    if way == "replicated":
        model.get_decoder().register_forward_pre_hook(lambda *_: _meet(meetings))
        yield model
    elif way == "fully_shard":
        # Images are encoded before the first forward of the whole model, so the parts that encode them gather their own weights;
        # the tower as a whole cannot, for transformers would not know the class that it becomes.
        ends = (part for name, part in tower.named_children() if name != "encoder")
        mesh = init_device_mesh("cpu", (count,))
        for part in (*layers, *tower.encoder.layers, *ends, model.model.multi_modal_projector):
            fully_shard(part, mesh=mesh)
        _show_root(fully_shard(model, mesh=mesh))
        yield model
    else:
        policy = ModuleWrapPolicy({type(layers[0])})
        wrapped = FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
        _show_root(wrapped)
        with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False, recurse=False):
            yield wrapped


@torch.no_grad()
def _show_root(model: Any) -> None:
    """Run a forward, which tells the parts which of them is the root."""
    model(input_ids=torch.tensor([[5, 6]]))


def _meet(meetings: list[None]) -> None:
    """Wait for the other processes, as sharded weights do in every forward."""
    meetings.append(None)
    distributed.all_reduce(torch.ones(1))
