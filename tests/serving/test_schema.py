"""The OpenAPI document: it describes what the server takes, and nothing that it describes ends in a failure of the server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

PROGRAM = shutil.which("schemathesis") or shutil.which("schemathesis", path=str(Path(sys.executable).parent))
EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "60")


def test_the_document_describes_a_request(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {"/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics"}
    fields = document["components"]["schemas"]["ChatRequest"]
    assert fields["required"] == ["model", "messages"]
    assert fields["additionalProperties"] is False
    assert fields["properties"]["model"]["enum"][:2] == ["testbed", "testbed:vcd"]
    assert "both" in str(document["components"]["schemas"]["GuardOptions"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(PROGRAM is None, reason="schemathesis is not installed; make test-serve installs it")
def test_nothing_that_is_described_fails(server, tmp_path):
    checks = "not_a_server_error,status_code_conformance,response_schema_conformance,content_type_conformance"
    options = ["--checks", checks, "--max-examples", EXAMPLES, "--request-timeout", "60", "--seed", "1"]
    command = [PROGRAM, "run", f"{server.url}/openapi.json", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1100, check=False)
    assert run.returncode == 0, run.stdout[-6000:]
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert not any(entry["status"] >= 500 for entry in server.requests)
