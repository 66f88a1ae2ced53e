"""A server under mixed load, at its capacity and at twice that, with and without a guard: times, throughput, memory, and nothing lost.

python benchmarks/serve_load.py --minutes 10 --out benchmarks/results/serve_load
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

from lvlm_guard.testbed.model import WEIGHTS

STACKS = ("plain", "vcd", "vcd+pai")
PLACES, ROWS = 64, 8
KINDS = ("whole", "streamed", "sampled", "several", "text", "malformed", "leaving")
SHARES = (40, 25, 10, 5, 10, 5, 5)
"""Of the mixed load: whole and streamed answers, sampled ones, three choices, no picture, bad requests, and clients that leave."""
QUESTIONS = ("what is in the picture ?", "what is left of the tree ?", "where is the kite and what colour is it ?")
ATTEMPTS = 3
"""Of each request that is told to wait."""
SECONDS_TO_START = 300
CLIENTS = 4
"""Keys under which requests come."""


@dataclass
class Outcome:
    """What became of the requests of one phase.

    Args:
        seconds: Of each answered request, by kind.
        statuses: How many ended in which way.
        wrong: What should not have happened, in words.
        tokens: Of all answers.
        duration: Seconds of the phase.
        memory: Of the server at its end, in MiB.
        memory_before: After half of it.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0
    duration: float = 0.0
    memory: float = 0.0
    memory_before: float = 0.0


class LoadedServer:
    """The server as a process."""

    name = "testbed"

    def __init__(self) -> None:
        keys = [option for client in range(CLIENTS) for option in ("--api-key", f"client-{client}")]
        stacks = [option for stack in STACKS for option in ("--stack", stack)]
        limits = ["--queue", str(PLACES), "--max-batch", str(ROWS)]
        code = "from lvlm_guard.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", "--model", "testbed", "--port", "0", *stacks, *keys, *limits]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.port = next(json.loads(line)["port"] for line in self.process.stderr if '"listening"' in line)
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL, text=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> int:
        """Tell it to stop, and return its exit status."""
        self.process.terminate()
        status = self.process.wait(120)
        self.drain.wait(10)
        return status


class TransformersServer(LoadedServer):
    """`transformers serve` with the same model, as a process; it has no batches of requests that do not ask for them."""

    name = str(WEIGHTS)

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        code = "from transformers.cli.transformers import main; main()"
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        command = [sys.executable, "-c", code, "serve", str(WEIGHTS), *place]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        self.drain = subprocess.Popen(["true"], text=True)
        self._wait()

    def _wait(self) -> None:
        for _ in range(SECONDS_TO_START):
            time.sleep(1)
            try:
                httpx.get(f"{self.url}/health")
            except httpx.HTTPError:
                continue
            return
        raise TimeoutError(f"transformers serve did not start within {SECONDS_TO_START} seconds.")


def draw_uri(seed: int) -> str:
    """Return one of many pictures as a data URI."""
    picture = Image.new("RGB", (64, 64), (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256))
    ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill=(seed * 151 % 256, seed * 29 % 256, 200))
    content = BytesIO()
    picture.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


URIS = [draw_uri(seed) for seed in range(24)]


@dataclass(frozen=True)
class LoadRequest:
    """One request of the load: its kind, body and key."""

    kind: str
    body: dict[str, Any]
    client: int

    @property
    def key(self) -> str:
        """What has one right answer."""
        return json.dumps(self.body, sort_keys=True)


def draw_request(source: random.Random, models: Sequence[str], kinds: Sequence[str] = KINDS) -> LoadRequest:
    """Return a request of the mix to one of some models."""
    kind = source.choices(kinds, [SHARES[KINDS.index(name)] for name in kinds])[0]
    content: list[dict[str, Any]] = [{"type": "text", "text": source.choice(QUESTIONS)}]
    if kind != "text":
        content.insert(0, {"type": "image_url", "image_url": {"url": source.choice(URIS)}})
    body: dict[str, Any] = {
        "model": source.choice(models),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": source.choice((4, 8, 16)),
    }
    if kind == "sampled":
        body |= {"temperature": 1.0, "seed": source.randrange(4)}
    if kind == "several":
        body |= {"n": 3, "temperature": 1.2, "seed": source.randrange(4)}
    if kind in ("streamed", "leaving"):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if kind == "malformed":
        body |= source.choice(({"foo": 1}, {"max_tokens": -1}, {"guard": {"stack": "none"}}, {"messages": []}))
    return LoadRequest(kind, body, source.randrange(CLIENTS))


async def send(client: httpx.AsyncClient, request: LoadRequest, outcome: Outcome, answers: dict[str, str]) -> None:
    """Send one request until it is taken or was told to wait too often, and note what became of it."""
    started = time.monotonic()
    headers = {"Authorization": f"Bearer client-{request.client}"}
    for _ in range(ATTEMPTS):
        async with client.stream("POST", "/v1/chat/completions", json=request.body, headers=headers) as response:
            if response.status_code != 429:
                await note(request, response, outcome, answers, started)
                return
            await response.aread()
            outcome.statuses["429"] += 1
        await asyncio.sleep(float(response.headers["retry-after"]) * random.uniform(0.5, 1))  # spreads who comes back
    outcome.statuses["turned away"] += 1


async def note(
    request: LoadRequest, response: httpx.Response, outcome: Outcome, answers: dict[str, str], started: float
) -> None:
    """Read an answer, and compare it with what the same request was answered before."""
    if request.kind == "malformed" or response.status_code != 200:
        await response.aread()
        outcome.statuses[str(response.status_code)] += 1
        if (request.kind, response.status_code) != ("malformed", 400):
            outcome.wrong.append(f"{request.kind}: status {response.status_code}: {response.text[:200]}")
        return
    if request.kind == "leaving":
        await anext(response.aiter_lines())
        outcome.statuses["left"] += 1
        return
    text, tokens = await (read_stream if request.kind == "streamed" else read_whole)(response, outcome, started)
    outcome.statuses["200"] += 1
    outcome.seconds.append(time.monotonic() - started)
    outcome.tokens += tokens
    if answers.setdefault(request.key, text) != text:
        outcome.wrong.append(f"{request.kind}: two answers to one request: {answers[request.key]!r}, {text!r}")


async def read_whole(response: httpx.Response, _: Outcome, __: float) -> tuple[str, int]:
    """Return the texts of all choices, and their tokens."""
    body = json.loads(await response.aread())
    texts = [choice["message"]["content"] for choice in body["choices"]]
    return json.dumps(texts), body["usage"]["completion_tokens"]


async def read_stream(response: httpx.Response, outcome: Outcome, started: float) -> tuple[str, int]:
    """Return the text of a stream, and its tokens; a stream without its end is wrong."""
    text, tokens, ends = "", 0, 0
    async for line in response.aiter_lines():
        if not line or line == "data: [DONE]":
            ends += line == "data: [DONE]"
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            outcome.wrong.append(f"streamed: {event['error']}")
            continue
        piece = "".join(choice["delta"].get("content", "") for choice in event["choices"])
        if piece and not text:
            outcome.first.append(time.monotonic() - started)
        text += piece
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if ends != 1:
        outcome.wrong.append(f"streamed: {ends} ends")
    return json.dumps([text]), tokens


async def measure_capacity(
    server: LoadedServer,
    model: str,
    seconds: float,
    answers: dict[str, str],
    kinds: Sequence[str] = ("whole", "streamed"),
) -> Outcome:
    """Keep enough requests open to fill every batch, and return how they went."""
    source, outcome = random.Random(1), Outcome()
    until = time.monotonic() + seconds
    async with open_client(server) as client:

        async def keep_asking() -> None:
            while time.monotonic() < until:
                await send(client, draw_request(source, [model], kinds), outcome, answers)

        await run_phase(server, outcome, [keep_asking() for _ in range(2 * ROWS)])
    return outcome


async def overload(server: LoadedServer, rate: float, seconds: float, answers: dict[str, str]) -> Outcome:
    """Send the mix at a fixed rate, whatever the server does, and wait for all of it."""
    source, outcome = random.Random(2), Outcome()
    models = [f"{server.name}:{stack}" for stack in STACKS]
    async with open_client(server) as client:

        async def send_all() -> None:
            until, tasks = time.monotonic() + seconds, []
            while time.monotonic() < until:
                tasks.append(asyncio.ensure_future(send(client, draw_request(source, models), outcome, answers)))
                if not outcome.memory_before and until - time.monotonic() < seconds / 2:
                    outcome.memory_before = server.memory
                await asyncio.sleep(source.expovariate(rate))
            await asyncio.gather(*tasks)

        await run_phase(server, outcome, [send_all()])
    return outcome


async def run_phase(server: LoadedServer, outcome: Outcome, work: list[Any]) -> None:
    """Do the work of a phase, and note how long it took and the memory at its end."""
    started = time.monotonic()
    await asyncio.gather(*work)
    outcome.duration, outcome.memory = time.monotonic() - started, server.memory


def open_client(server: LoadedServer) -> httpx.AsyncClient:
    """Return a client without a limit of its own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    return httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits)


def read_open(server: LoadedServer) -> float:
    """Return how many requests the server holds, once it has noticed who left."""
    headers = {"Authorization": "Bearer client-0"}
    for _ in range(100):
        lines = httpx.get(f"{server.url}/metrics", headers=headers).text.splitlines()
        count = next(float(line.split()[1]) for line in lines if line.startswith("lvlm_guard_open_requests "))
        if not count:
            break
        time.sleep(0.1)
    return count


def describe(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of one phase."""
    quantiles = {f"p{share}": float(np.percentile(outcome.seconds, share)) for share in (50, 95, 99)}
    first = {
        f"first_p{share}": float(np.percentile(outcome.first, share)) if outcome.first else None for share in (50, 95)
    }
    answered = outcome.statuses["200"]
    return {
        "phase": name, "seconds": outcome.duration, "answers": answered, "answers_per_second": answered / outcome.duration,
        "tokens_per_second": outcome.tokens / outcome.duration, **quantiles, **first, "memory_mib": outcome.memory,
        "memory_before_mib": outcome.memory_before,
        "statuses": dict(outcome.statuses), "wrong": outcome.wrong,
    }  # fmt: skip


def write_figure(figure: float | None, places: int) -> str:
    """Return a figure of the table; a dash where there is none."""
    return "-" if figure is None else f"{figure:.{places}f}"


def write_table(figures: list[dict[str, Any]], settings: str) -> str:
    """Return the figures as a Markdown page."""
    columns = ("answers_per_second", "tokens_per_second", "p50", "p95", "p99", "first_p50", "first_p95", "memory_mib")
    head = "| phase | answers | answers/s | tokens/s | p50 s | p95 s | p99 s | first text p50 s | p95 s | memory MiB | turned away |"
    rows = [
        f"| {entry['phase']} | {entry['answers']} | "
        + " | ".join(write_figure(entry[column], 0 if column == "memory_mib" else 2) for column in columns)
        + f" | {entry['statuses'].get('turned away', 0)} |"
        for entry in figures
    ]
    wrong = sum(len(entry["wrong"]) for entry in figures)
    end = f"Requests that were lost, answered twice, differently or with an error they should not have met: {wrong}."
    last = figures[-1]
    end += f" Memory after half of the mixed load: {last['memory_before_mib']:.0f} MiB, at its end {last['memory_mib']:.0f} MiB."
    return "\n".join([f"# A server under load\n\n{settings}\n", head, "|---" * 11 + "|", *rows, "", end, ""])


def measure_transformers(seconds: float) -> dict[str, Any]:
    """Return the figures of `transformers serve` on whole answers of the same requests; its streams do not count tokens."""
    server = TransformersServer()
    try:
        for warms_up in (3.0, seconds):
            outcome = asyncio.run(measure_capacity(server, server.name, warms_up, {}, ["whole"]))
    finally:
        server.stop()
    figures = describe(f"transformers serve, {2 * ROWS} open, whole answers", outcome)
    return figures | {"wrong": [], "wrong_of_transformers": figures["wrong"]}


def main() -> None:
    """Run all phases on one server, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the mixed load at twice the capacity")
    parser.add_argument(
        "--capacity-seconds", type=float, default=30.0, help="of each phase that measures a stack alone"
    )
    parser.add_argument(
        "--transformers", action="store_true", help="measure transformers serve beside it, with the same model"
    )
    parser.add_argument("--out", type=Path, default=None, help="without a suffix; .md and .json are written")
    arguments = parser.parse_args()
    server, answers, figures = LoadedServer(), dict[str, str](), []
    asyncio.run(measure_capacity(server, "testbed:plain", 3, answers))  # warms up
    for stack in STACKS:
        outcome = asyncio.run(measure_capacity(server, f"testbed:{stack}", arguments.capacity_seconds, answers))
        figures.append(describe(f"{stack}, {2 * ROWS} open", outcome))
    rate = 2 / float(np.mean([1 / entry["answers_per_second"] for entry in figures]))
    outcome = asyncio.run(overload(server, rate, 60 * arguments.minutes, answers))
    figures.append(describe(f"mixed, {rate:.1f} requests/s", outcome))
    figures[-1]["left_open"] = read_open(server)
    status = server.stop()
    if arguments.transformers:
        figures.insert(len(STACKS), measure_transformers(arguments.capacity_seconds))
    settings = (
        f"`python benchmarks/serve_load.py --minutes {arguments.minutes:g} --capacity-seconds {arguments.capacity_seconds:g}{' --transformers' * arguments.transformers}` on "
        f"{os.cpu_count()} cores, the bundled model, batches of {ROWS} rows, {PLACES} places, answers of 4 to 16 tokens. The mixed "
        f"load arrives at twice the capacity, for all stacks alike; clients come back {ATTEMPTS - 1} times after a 429, and times "
        "of answers count from the first attempt. The server had no machine of its own: other work kept the load average at "
        f"{os.getloadavg()[1]:.1f}."
    )
    if arguments.transformers:
        settings += (
            " `transformers serve` answers the same model's requests without a guard; it was measured last, on whole answers alone, since "
            "its streams do not count tokens."
        )
    table = write_table(figures, settings)
    print(table)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(table, encoding="utf-8")
        arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    assert status == 0, status
    assert figures[-1]["left_open"] == 0
    assert figures[-1]["memory_mib"] < 1.1 * figures[-1]["memory_before_mib"]
    assert not any(entry["wrong"] for entry in figures), [entry["wrong"][:5] for entry in figures]


if __name__ == "__main__":
    main()
