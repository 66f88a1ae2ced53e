"""Digests of a checkpoint's files are those of the model that is loaded from them."""

from __future__ import annotations

import pytest
import torch

from lvlm_guard import loading
from lvlm_guard.engines.vllm.checkpoint import digest_checkpoint, find_checkpoint
from lvlm_guard.strategy.fingerprints import differ, digest_weights
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testing import tiny


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
def test_files_and_model_have_the_same_digests_and_other_weights_do_not(tmp_path, architecture):
    model = tiny(architecture)[0]
    model.save_pretrained(tmp_path)
    of_files, of_model = digest_checkpoint(tmp_path), digest_weights(model)
    assert of_files == of_model
    assert len(of_files) == 8
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1.0)
    assert differ(of_files, digest_weights(model)) is True


def test_the_bundled_weights_are_those_of_the_bundled_model():
    of_files = digest_checkpoint(find_checkpoint(str(WEIGHTS), None))
    assert differ(of_files, digest_weights(loading.load("testbed", "cpu")[0])) is False


def test_where_there_are_no_files_there_are_no_digests(tmp_path):
    assert digest_checkpoint(tmp_path) == {}
    assert digest_checkpoint(find_checkpoint("nobody/has-this-model", None)) == {}
