"""Parquet goes in and out as JSONL does: the same units, the same answers, and a bad row costs only itself."""

import json
from io import BytesIO

import pytest
from bulk_stand_in import StandIn
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard import InputError
from lvlm_guard.bulk import parquet
from lvlm_guard.bulk.answerers import read_unit_picture
from lvlm_guard.bulk.answering import answer_units
from lvlm_guard.bulk.inputs import open_units
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import OwnProcess
from lvlm_guard.bulk.units import BulkUnit, RejectedLine
from lvlm_guard.cli import app

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'lvlm-guard[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")


def encode(index):
    content = BytesIO()
    draw_picture(index).save(content, "PNG")
    return content.getvalue()


def write(path, rows, **settings):
    pq.write_table(pyarrow.Table.from_pylist(rows), path, **settings)
    return path


def test_pictures_are_paths_or_contents(tmp_path):
    draw_picture(1).save(tmp_path / "1.png")
    rows = {"path": "1.png", "bytes": encode(1), "both": {"bytes": encode(1), "path": "elsewhere.png"}}
    for name, image in rows.items():
        path = write(tmp_path / f"{name}.parquet", [{"image": image, "question": "what ?"}])
        (unit,) = open_units(path)
        assert (unit.id, unit.line, unit.questions) == ("line 1", 1, ("what ?",))
        assert read_unit_picture(unit).tobytes() == draw_picture(1).tobytes()
    assert draw_picture(1).tobytes() != draw_picture(2).tobytes()


def test_rows_that_cannot_be_used_are_left_out_by_number(tmp_path):
    rows = [
        {"id": "a", "image": b"no picture", "questions": ["what ?"]},
        {"id": "b", "image": None, "questions": ["what ?"]},
        {"id": "c", "image": encode(1), "questions": None},
        {"id": "a", "image": encode(1), "questions": ["what ?"]},
        {"id": None, "image": encode(1), "questions": ["what ?"]},
    ]
    entries = list(open_units(write(tmp_path / "a.parquet", rows)))
    assert [entry.line for entry in entries] == [1, 2, 3, 4, 5]
    assert [type(entry) for entry in entries] == [BulkUnit, RejectedLine, RejectedLine, RejectedLine, BulkUnit]
    assert entries[4].id == "line 5"
    with pytest.raises(InputError, match="'a'"):
        read_unit_picture(entries[0])


def test_a_damaged_part_of_a_file_costs_its_rows_alone(tmp_path):
    rows = [{"image": f"{index}.png", "question": "what ?"} for index in range(6)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=2, compression="NONE", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = b"\xff" * (
        column.total_compressed_size
    )
    path.write_bytes(content)
    entries = list(open_units(path))
    assert [entry.line for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry.line for entry in entries if isinstance(entry, RejectedLine)] == [3, 4]


def test_files_that_are_refused_at_once(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    write(tmp_path / "b.parquet", [{"image": "a.png", "question": "what ?", "label": 1}])
    for name, words in (("a.parquet", "as Parquet"), ("b.parquet", "'label'"), ("c.parquet", "no such file")):
        with pytest.raises(InputError, match=words):
            open_units(tmp_path / name)


def test_columns_of_other_types_cost_their_rows_alone(tmp_path):
    """Values that Python has no form for, and nested ones where a text belongs."""
    texts = pyarrow.array(["a.png"] * 2)
    far = pyarrow.array([2**53, 2**52]).cast(pyarrow.timestamp("s"))
    tables = {
        "far": pyarrow.table({"id": far, "image": texts, "question": texts}),
        "nested": pyarrow.table({"image": texts, "questions": pyarrow.array([[["a"]], [None]])}),
        "map": pyarrow.table(
            {"image": pyarrow.array([[("a", "b")]] * 2, pyarrow.map_("string", "string")), "question": texts}
        ),
        "nulls": pyarrow.table({"image": pyarrow.nulls(2), "question": pyarrow.nulls(2)}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        entries = list(open_units(tmp_path / f"{name}.parquet"))
        assert [(type(entry), entry.line) for entry in entries] == [(RejectedLine, 1), (RejectedLine, 2)], name


def test_large_and_encoded_columns_are_read(tmp_path):
    picture = pyarrow.array([encode(1)], pyarrow.large_binary())
    question = pyarrow.array(["what ?"]).dictionary_encode()
    pq.write_table(pyarrow.table({"image": picture, "question": question}), tmp_path / "a.parquet")
    (unit,) = open_units(tmp_path / "a.parquet")
    assert (unit.image, unit.questions) == (encode(1), ("what ?",))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, ["image", "question", "question"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns have one name"):
        open_units(tmp_path / "a.parquet")


def test_answers_as_parquet_hold_what_the_lines_hold(tmp_path):
    rows = [{"id": f"u{index}", "image": "a.png", "questions": ["a", "b"]} for index in range(700)]
    with AnswerLedger(tmp_path / "out", {"format": 1}) as ledger:
        answer_units(OwnProcess(StandIn()), open_units(write(tmp_path / "a.parquet", rows)), ledger)
    parquet.write_answers(tmp_path / "out" / "answers.jsonl", tmp_path / "answers.parquet")
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert pq.read_table(tmp_path / "answers.parquet").to_pylist() == [json.loads(line) for line in lines]
    assert len(lines) == 700


def test_the_command_reads_and_writes_parquet(tmp_path):
    rows = [{"image": encode(index), "questions": ["what is in the picture ?"]} for index in range(2)]
    path = write(tmp_path / "a.parquet", [*rows, {"image": b"none", "questions": ["what ?"]}])
    options = ["--model", "testbed", "--out", str(tmp_path / "out"), "--max-new-tokens", "3", "--device", "cpu"]
    result = CliRunner().invoke(app, ["generate-batch", str(path), *options])
    assert result.exit_code == 1, result.output
    assert "line 3:" in result.output
    entries = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert [entry["line"] for entry in entries] == [1, 2]
    assert all(entry["answers"][0]["answer"] for entry in entries)
