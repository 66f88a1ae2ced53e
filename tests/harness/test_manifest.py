"""The model that installing the library offers to lmms-eval: its manifest is cheap to import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOADED = """
import json, sys
import lvlm_guard.harness.manifest
print(json.dumps(sorted(sys.modules)))
"""


def test_offering_the_model_imports_neither_the_harness_nor_torch(tmp_path):
    process = subprocess.run([sys.executable, "-c", LOADED], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = json.loads(process.stdout)
    heavy = {"torch", "transformers", "pydantic", "lmms_eval", "lm_eval", "lvlm_guard.guard"}
    assert "lvlm_guard.harness.manifest" in loaded
    assert heavy & set(loaded) == set()


def test_the_manifest_names_a_chat_class_that_exists(registry):
    (manifest,) = registry.models()
    assert (manifest.model_id, manifest.simple_class_path) == ("lvlm_guard", None)
    module, _, name = manifest.chat_class_path.rpartition(".")
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
