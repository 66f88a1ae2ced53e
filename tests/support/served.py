"""A server as a process of its own: started, watched by its log, and told to stop."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw

START_SECONDS = 120


class ServerProcess:
    """A server that listens on a free port.

    Args:
        command: What starts it, with its log on standard error.
        seconds: In which it has to listen.
    """

    def __init__(self, command: Sequence[str], seconds: float = START_SECONDS) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._ports: queue.Queue[int] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = self._wait_for_port(seconds)

    def _wait_for_port(self, seconds: float) -> int:
        """Return where it listens, as soon as it does; a process that ended already never will."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(queue.Empty):
                return self._ports.get(timeout=0.2)
        self.process.kill()
        status = self._close()
        raise AssertionError(
            f"It did not listen within {seconds:g} seconds, or ended before ({status}). Its log:\n{self._log()}"
        )

    def _close(self) -> int:
        """Return the exit status of the process, which has been told to end."""
        status = self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def _log(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self._ports.put(json.loads(line)["port"])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What its log says of requests that have ended."""
        entries = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == "request"]

    def stop(self, seconds: float = 60) -> int:
        """Tell it to stop, and return its exit status once it has."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self._close()
            raise AssertionError(f"It did not stop within {seconds:g} seconds. Its log:\n{self._log()}") from None
        return self._close()


def start_command(*options: str, seconds: float = START_SECONDS) -> ServerProcess:
    """Start `lvlm-guard serve` as users do."""
    code = "from lvlm_guard.cli import main; main()"
    return ServerProcess([sys.executable, "-c", code, "serve", "--model", "testbed", "--port", "0", *options], seconds)


def draw_picture(seed: int) -> Image.Image:
    """Return a picture of 64 pixels a side that no other seed gives."""
    picture = Image.new("RGB", (64, 64), (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256))
    corner = seed * 7 % 40
    ImageDraw.Draw(picture).ellipse((corner, 8, corner + 20, 40), fill=(seed * 151 % 256, seed * 29 % 256, 200))
    return picture


def write_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI."""
    content = BytesIO()
    picture.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def ask(text: str, *pictures: Image.Image) -> list[dict[str, Any]]:
    """Return messages as OpenAI's clients send them."""
    images = [{"type": "image_url", "image_url": {"url": write_uri(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]
