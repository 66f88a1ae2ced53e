"""A run of the benchmark room that takes milliseconds: a model that answers by arithmetic, and a suite without files.

As a script it does the run once, then again and again in processes of their own that kill themselves in the middle of
a write, each time taking the run up afterwards: `quick_run.py FOLDER KILLS`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from lvlm_guard.bench import files
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.suite import Loaded
from lvlm_guard.host.stack import Stack

WORDS = ("<pad>", "<eos>", "yes", "no", *(f"word{number}" for number in range(20)))
PAD, END, YES, NO = range(4)


class Arithmetic(torch.nn.Module):
    """Answers with tokens counted on from the prompt, or drawn if asked to; row by row, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.config = SimpleNamespace(to_dict=lambda: {"model_type": "arithmetic"})
        self.generation_config = SimpleNamespace(eos_token_id=END, to_dict=dict)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int = 4, do_sample: bool = False, **kwargs: Any
    ) -> Tensor:
        first = (input_ids * attention_mask).sum(1) % len(WORDS)
        answers = first[:, None] + torch.arange(max_new_tokens)
        if do_sample:
            answers = torch.randint(2, 1000, answers.shape)
        scores = torch.nn.functional.one_hot(answers[:, 0] % len(WORDS), len(WORDS)).float()
        for processor in kwargs.get("logits_processor", ()):
            processor(input_ids, scores)
        return torch.cat([input_ids, 2 + answers % (len(WORDS) - 2)], 1)


class Letters:
    """A processor and tokenizer: a prompt's letters are its ids."""

    chat_template = "text"
    padding_side = "left"
    pad_token_id, unk_token_id = PAD, None

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "".join(item.get("text", "") for message in messages for item in message["content"])

    def __call__(self, text: str | Sequence[str], **_: Any) -> Any:
        if isinstance(text, str):
            return {"input_ids": [WORDS.index(text)] if text in WORDS else [4, 5]}
        longest = max(map(len, text))
        ids = torch.tensor([[PAD] * (longest - len(row)) + [ord(letter) for letter in row] for row in text])
        return BatchFeature({"input_ids": ids, "attention_mask": (ids != PAD).long()})

    def batch_decode(self, rows: Tensor, **_: Any) -> list[str]:
        return [" ".join(WORDS[token] for token in row if token not in (PAD, END)) for row in rows.tolist()]


@dataclass(frozen=True)
class Toy:
    """Three items about each of some pictures, one of them longer; one item without picture."""

    pictures: int = 5

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    levels: ClassVar[tuple[Any, ...]] = ("object",)
    licence: ClassVar[str] = "none"
    homepage: ClassVar[str] = ""
    required: ClassVar[tuple[Any, ...]] = ()
    parsers: ClassVar[tuple[str, ...]] = ("ours",)

    def load(self, data: Path | None) -> Loaded:
        items = [
            Item(f"{image}/{kind}", f"p{image}", f"{kind} {image}?", truth, "object", kind, max_new_tokens=tokens)
            for image in range(self.pictures)
            for kind, truth, tokens in (("is", "yes", 2), ("was", "no", 2), ("tell", ["a"], 5))
        ]
        return Loaded([*items, Item("alone", None, "hello", "yes", "object", "is", max_new_tokens=2)])

    def picture(self, data: Path | None, image: str) -> Image.Image:
        return Image.new("RGB", (4, 4), (int(image[1:]) * 20, 0, 0))

    def measures(self, parser: str) -> tuple[Any, ...]:
        return ()

    def official(self, said: Sequence[Any], parser: str) -> dict[str, float | None]:
        return {}


def plan(
    pictures: int = 5,
    seed: int = 0,
    batch: int = 4,
    stacks: Mapping[str, Any] | None = None,
    without: Sequence[str] = systems.CONTROLS[2:],
    **changed: Any,
) -> RunPlan:
    """Greedy and sampling over two toys by default."""
    toys = {
        name: SuiteChoice(Toy(count), "ours", {"pictures": count}) for name, count in (("toy", pictures), ("small", 2))
    }
    compared = systems.build_systems({name: Stack.of(stack) for name, stack in (stacks or {}).items()}, without)
    return RunPlan(toys, compared, tuple(without), batch=batch, seed=seed, **changed)


def run(folder: Path, chosen: RunPlan | None = None, model: Any = None) -> Record:
    """Do it, without a word."""
    return runner.run(chosen or plan(), model or Arithmetic(), Letters(), Path(folder), model_id="toy", progress=False)


def kept(folder: Path) -> dict[str, bytes]:
    """What a run must have written, but for measured times, by path."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if "costs" not in path.parts}


def writes(folder: Path) -> list[int]:
    """Sizes of everything that a whole run writes, in order."""
    sizes: list[int] = []
    write = files._put

    def measure(handle: int, content: bytes | memoryview) -> None:
        sizes.append(len(content))
        write(handle, content)

    files._put = measure
    try:
        run(folder)
    finally:
        files._put = write
    return sizes


def run_and_die(folder: Path, at: int, size: int) -> None:
    """Run until write number `at`, of which `size` bytes reach the file; then there is no more process."""
    write, count = files._put, iter(range(10**9))

    def last(handle: int, content: bytes | memoryview) -> None:
        if next(count) == at:
            os.write(handle, content[:size])
            os.kill(os.getpid(), signal.SIGKILL)
        write(handle, content)

    files._put = last
    run(folder)


def killed(folder: Path, at: int, size: int) -> int:
    """Return the exit code of a process that ran `run_and_die`."""
    child = os.fork()
    if child == 0:
        try:
            run_and_die(folder, at, size)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    sizes = writes(folder / "whole")
    draw = random.Random(0)
    points = [0, 1, *draw.sample(range(2, len(sizes)), kills - 2)]  # items and manifest come first
    for number, at in enumerate(points):
        size = draw.choice([0, draw.randrange(sizes[at]), sizes[at]]) if at > 1 else sizes[at] // 2
        assert killed(folder / str(number), at, size) == -signal.SIGKILL
        if number % 3 == 0:  # killed again while taking the run up
            again = killed(folder / str(number), draw.randrange(len(sizes) - at), 1)
            assert again in (0, -signal.SIGKILL)
        run(folder / str(number))
    sys.stdout.write(f"{len(sizes)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
