"""A stack file that a search writes is one that `Stack` reads, with where it comes from in its comments."""

from __future__ import annotations

import pytest

from lvlm_guard import InputError, Stack
from lvlm_guard.tuning.records import TrialRecord
from lvlm_guard.tuning.stack_file import HEAD, format_stack
from lvlm_guard.tuning.tune import check_destination

VDD = {"name": "vdd", "params": {"alpha": 1e-05, "blank": "none", "unk_id": 3}}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [VDD],
        [VDD, {"name": "dola", "params": {"final_norm": True, "layers": ["high"][0]}}],
        [{"name": "gated", "params": {"margin": 1.5, "strategies": [VDD, {"name": "sla", "params": {}}]}}],
        [{"name": "icd", "params": {"instruction": 'a "quoted" \\ line\nand é \x7f'}}],
        [{"name": "memvr", "params": {"layers": [0.25, 0.5]}}],
    ],
)
def test_what_is_written_is_read_back(tmp_path, entries):
    path = tmp_path / "stack.toml"
    text = format_stack(entries, ["model: m\n[[stack]]", "a \x00 b"])
    if not entries:
        text += "stack = []\n"
    path.write_text(text, encoding="utf-8")
    assert Stack.read(path).to_dict() == Stack.of([dict(entry) for entry in entries]).to_dict()
    assert text.startswith(HEAD)


def test_what_toml_cannot_hold_is_refused():
    with pytest.raises(InputError, match="cannot hold"):
        format_stack([{"name": "vdd", "params": {"alpha": float("nan")}}], [])


def test_none_is_left_out_of_a_mapping():
    assert "unk_id" not in format_stack([{"name": "vdd", "params": {"unk_id": None, "alpha": 1.0}}], [])


def test_a_file_that_no_search_wrote_is_not_replaced(tmp_path):
    path = tmp_path / "stack.toml"
    check_destination(path)
    path.write_text(format_stack([VDD], []))
    check_destination(path)
    path.write_text('[[stack]]\nname = "vdd"\n')
    with pytest.raises(InputError, match="not written by a search"):
        check_destination(path)
    with pytest.raises(InputError, match=r"ends in \.toml"):
        check_destination(tmp_path / "stack.yaml")


def test_a_record_knows_whether_it_can_be_chosen():
    assert TrialRecord(0, {}, (), "finished").is_finished
    assert not TrialRecord(0, {}, (), "weak").is_finished
