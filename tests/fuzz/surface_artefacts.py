"""Artefacts of every strategy that reads one: cut, noisy, resized, retyped, renamed, of others, or something else altogether."""

import json
import os
import pickle
import random
import struct
from functools import cache
from pathlib import Path

import torch
from fuzzing import Attempt, Surface
from safetensors.torch import save

from lvlm_guard import Guard, Stack
from lvlm_guard.strategy.artefacts import MANIFEST, describe_model
from lvlm_guard.testing import tiny

KINDS = ("vti", "nullu", "adhh")
VALUES = (None, True, -1, 10**30, "x", "x" * 5000, "\x00", [], [1], {}, {"a": [1]}, 1.5, [["x"]], "é" * 300)
DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn,
)  # fmt: skip
SIZES = (
    (),
    (0,),
    (1,),
    (3,),
    (3, 32),
    (2, 32),
    (3, 31),
    (3, 6, 32),
    (3, 6, 31),
    (4, 6, 32),
    (3, 0, 32),
    (9, 2),
    (2, 26, 32),
)


@cache
def build():
    return tiny("llava")


def draw_tensors(kind: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if kind == "vti":
        return {
            name: torch.randn(size, generator=draw) for name, size in (("decoder", (3, 32)), ("vision", (2, 26, 32)))
        }
    if kind == "nullu":
        return {"directions": torch.randn(3, 6, 32, generator=draw)}
    heads = torch.stack([torch.randint(3, (6,), generator=draw), torch.randint(4, (6,), generator=draw)], dim=1)
    return {"heads": heads, "scores": torch.randn(3, 4, generator=draw).double()}


def whole(
    kind: str, manifest: dict[str, object] | None = None, tensors: dict[str, torch.Tensor] | None = None
) -> bytes:
    """The bytes of an artefact without a checksum, which would catch everything first."""
    facts = {"kind": kind, "model": "tiny", **describe_model(build()[0])} if manifest is None else manifest
    return save(draw_tensors(kind, 0) if tensors is None else tensors, {MANIFEST: json.dumps(facts)})


def change_tensors(chance: random.Random, kind: str) -> bytes:
    tensors = draw_tensors(kind, 1)
    for _ in range(chance.randrange(1, 3)):
        name = chance.choice([*tensors] or ["gone"])
        how = chance.randrange(6)
        if how == 0:
            tensors[name] = torch.ones(chance.choice(SIZES), dtype=chance.choice([torch.float32, torch.int64]))
        elif how == 1:
            changed = tensors.get(name, torch.ones(2))
            tensors[name] = torch.ones(changed.shape, dtype=chance.choice(DTYPES))
        elif how == 2 and name in tensors:
            tensors[chance.choice(["", "x" * 300, "decoder ", "Heads", "__x__"])] = tensors.pop(name)
        elif how == 3 and name in tensors and tensors[name].is_floating_point():
            tensors[name] = torch.full(tensors[name].shape, chance.choice([float("nan"), float("inf"), 3e38, 0.0]))
        elif how == 4 and name in tensors and tensors[name].dtype in (torch.float32, torch.int64):
            tensors[name] = tensors[name].float().mul(chance.choice([-1, 1e30, 0])).nan_to_num().clamp(-1e9, 1e9).long()
        else:
            tensors.pop(name, None)
    return whole(kind, tensors=tensors)


def change_manifest(chance: random.Random, kind: str) -> bytes:
    facts = {"kind": kind, "model": "tiny", **describe_model(build()[0])}
    for _ in range(chance.randrange(1, 3)):
        name = chance.choice([*facts, "sha256", "extra"])
        if chance.random() < 0.3:
            facts.pop(name, None)
        else:
            facts[name] = chance.choice(VALUES)
    return whole(kind, facts)


def change_bytes(chance: random.Random, kind: str) -> bytes:
    content = bytearray(whole(kind))
    how = chance.randrange(5)
    if how == 0:
        return bytes(content[: chance.randrange(len(content))])
    if how == 1:
        return bytes(content) + chance.randbytes(chance.randrange(1, 50))
    if how == 2:
        content[:8] = struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(content), len(content) * 2]))
    elif how == 3:
        content[:8] = content[:8][::-1]
    else:
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def something_else(chance: random.Random, kind: str) -> bytes:
    header = ('{"__metadata__":{"lvlm_guard":"' + chance.choice(["[" * 5000, "1", "null", "{}", ""]) + '"}}').encode()
    return chance.choice([
        b"",
        b"{}",
        json.dumps({"kind": kind}).encode(),
        pickle.dumps({"kind": kind}),
        b"PK\x03\x04" + chance.randbytes(60),
        chance.randbytes(200),
        struct.pack("<Q", len(header)) + header,
        b"version https://git-lfs.github.com/spec/v1\n",
        save({"weight": torch.ones(2)}),
    ])  # fmt: skip


def place(chance: random.Random, kind: str, folder: Path) -> Path:
    """A path at which no file can be read."""
    how, path = chance.randrange(6), folder / "artefact"
    if how == 0:
        path.mkdir()
    elif how == 1:
        path.symlink_to(path)
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        return folder / ("x" * 400)
    elif how == 4:
        return folder / "a\x00b"
    return path


def draw(chance: random.Random, folder: Path) -> Attempt:
    kind = chance.choice(KINDS)
    change = chance.choice([change_tensors, change_tensors, change_manifest, change_bytes, something_else, place])
    if change is place:
        path = place(chance, kind, folder)
    else:
        path = folder / chance.choice(["artefact.safetensors", "a.json", "a.bin", "a"])
        source = kind if chance.random() < 0.9 else chance.choice(KINDS)
        path.write_bytes(change(chance, source))
    params = {"artefact": str(path), **({"k": chance.choice([1, 4, 6])} if kind == "nullu" else {})}

    def run() -> object:
        model, inputs = build()
        return Guard(model, None, Stack.of({"name": kind, "params": params})).generate(**inputs, max_new_tokens=1)

    return Attempt(f"{kind} with {change.__name__}: {path.name[:40]!r}", run)


SURFACE = Surface("artefacts", draw, attempts=1200, slice=120)
