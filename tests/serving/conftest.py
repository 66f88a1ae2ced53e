"""One server of the bundled model for all tests, and a guard on the same model beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
openai = pytest.importorskip("openai", reason="openai's client is not installed")

from served import ServerProcess  # noqa: E402 - behind the skips

from lvlm_guard import Guard, loading  # noqa: E402 - as above


@pytest.fixture(scope="session")
def server():
    script = Path(__file__).parents[1] / "support" / "served_stacks.py"
    running = ServerProcess([sys.executable, str(script)])
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def guard():
    model, processor = loading.load("testbed", "cpu")
    return Guard(model, processor, "vcd", without_image="plain")


@pytest.fixture
def complete(client):
    """Ask the server; `stack` and `report` go where clients of OpenAI put what others add."""

    def complete(messages, stack="vcd", max_tokens=12, report=None, **settings):
        options = {"stack": stack} if report is None else {"stack": stack, "report": report}
        return client.chat.completions.create(
            model="testbed", messages=messages, max_tokens=max_tokens, extra_body={"guard": options}, **settings
        )

    return complete
