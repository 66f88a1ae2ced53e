"""What a run keeps is what it wrote: an answer, a cost, an item or a setting that was edited, moved or copied is found."""

import json
import shutil
import time
import warnings

import pytest
import quick_run

from lvlm_guard.bench.running import store
from lvlm_guard.bench.running.sealing import CHECK, Ledger
from lvlm_guard.errors import GuardWarning, InputError

ANSWERS = "answers/greedy/toy.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    quick_run.run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(line, **changed):
    return json.dumps({**json.loads(line), **changed}).encode() + b"\n"


def other(value):
    return {str: f"{value} indeed", int: 7, float: 1.5, type(None): 0.5}[type(value)]


EDITS = {
    "text": lambda lines: [edit(lines[0], text="yes"), *lines[1:]],
    "text in the middle": lambda lines: [*lines[:5], edit(lines[5], text=""), *lines[6:]],
    "tokens": lambda lines: [*lines[:2], edit(lines[2], tokens=99), *lines[3:]],
    "another type of the same number": lambda lines: [edit(lines[0], tokens=float(json.loads(lines[0])["tokens"])), *lines[1:]],
    "margin": lambda lines: [edit(lines[0], margin=-0.5), *lines[1:]],
    "no number": lambda lines: [edit(lines[0], margin=float("nan")), *lines[1:]],
    "id": lambda lines: [edit(lines[0], id=json.loads(lines[3])["id"]), *lines[1:]],
    "check value": lambda lines: [edit(lines[0], **{CHECK: "0" * 16}), *lines[1:]],
    "check value removed": lambda lines: [edit(lines[0], **{CHECK: None}), *lines[1:]],
    "another key": lambda lines: [edit(lines[0], note="mine"), *lines[1:]],
    "removed": lambda lines: [*lines[:3], *lines[4:]],
    "removed at the start": lambda lines: lines[1:],
    "doubled": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "added at the end": lambda lines: [*lines, lines[-1]],
    "exchanged": lambda lines: [lines[1], lines[0], *lines[2:]],
    "reversed": lambda lines: lines[::-1],
    "no JSON": lambda lines: [*lines[:4], b"{half\n", *lines[5:]],
    "NUL": lambda lines: [lines[0].replace(b'"text"', b'"te\0t"'), *lines[1:]],
    "a list": lambda lines: [b"[1]\n", *lines[1:]],
    "a carriage return inside": lambda lines: [lines[0].replace(b'"text": "', b'"text": "\r'), *lines[1:]],
    "not UTF-8": lambda lines: [lines[0].replace(b'"text": "', b'"text": "\xff'), *lines[1:]],
    "an empty line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_file_of_answers_is_found_by_every_reader_with_file_line_and_way_out(folder, kind):
    path = folder / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(EDITS[kind](lines)))
    before = quick_run.kept(folder)
    for use in (lambda: quick_run.run(folder), lambda: store.read(folder).read_answers("greedy", "toy")):
        with pytest.raises(InputError, match=rf"{ANSWERS}, line \d+, .*(Keep the \d+ lines|Remove the file)"):
            use()
    assert quick_run.kept(folder) == before


def test_the_way_out_leads_out(folder, finished):
    path = folder / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], edit(lines[5], text="no"), *lines[6:]]))
    with pytest.raises(InputError, match=r"line 6, .*Keep the 5 lines before it"):
        quick_run.run(folder)
    path.write_bytes(b"".join(lines[:5]))
    quick_run.run(folder)
    assert quick_run.kept(folder) == quick_run.kept(finished)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 8}, {"pictures": 4}])
def test_a_line_copied_from_another_run_is_found(folder, tmp_path, change):
    """The item is the same, and so is its place."""
    quick_run.run(tmp_path / "other", quick_run.plan(**change))
    shutil.copy(tmp_path / "other" / ANSWERS, folder / ANSWERS)
    with pytest.raises(InputError, match="line 1, is not what the run wrote there"):
        store.read(folder).read_answers("greedy", "toy")


def test_answers_copied_from_another_system_are_found(folder):
    shutil.copy(folder / "answers/sampling/toy.jsonl", folder / ANSWERS)
    with pytest.raises(InputError, match="line 1, is not what the run wrote there"):
        store.read(folder).read_answers("greedy", "toy")


@pytest.mark.parametrize(
    "change", [lambda content: content.replace(b"\n", b"\r\n"), lambda content: b"\xef\xbb\xbf" + content]
)
def test_an_editor_that_only_changes_line_ends_or_the_start_of_a_file_does_no_harm(folder, finished, change):
    path = folder / ANSWERS
    path.write_bytes(change(path.read_bytes()))
    record = quick_run.run(folder)
    assert record.read_answers("greedy", "toy") == store.read(finished).read_answers("greedy", "toy")


@pytest.mark.parametrize("name", ["seconds", "tokens", "rows", "prefill", "decode", "rows_per_forward", "batch"])
def test_an_edited_cost_is_found(folder, name):
    path = folder / "costs/greedy/toy.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(edit(lines[0], **{name: 2}) + b"".join(lines[1:]))
    with pytest.raises(InputError, match=r"toy\.jsonl, line 1, is not what the run wrote there"):
        store.read(folder).costs("greedy", "toy")


@pytest.mark.parametrize("name", ["truth", "prompt", "kind", "image", "cluster", "extra", "suite"])
def test_an_edited_item_is_found(folder, name):
    path = folder / "items.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(edit(lines[0], **{name: "no"}) + b"".join(lines[1:]))
    for use in (lambda: quick_run.run(folder), lambda: store.read(folder)):
        with pytest.raises(InputError, match=r"items\.jsonl, line 1, is not what the run wrote there"):
            use()


def test_items_that_are_missing_are_found_and_written_again(folder, finished):
    path = folder / "items.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"items\.jsonl does not hold the items that small was run with. Remove"):
        store.read(folder)
    path.unlink()
    quick_run.run(folder)
    assert quick_run.kept(folder) == quick_run.kept(finished)


def paths(value, path=()):
    """Every place in nested values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from paths(inner, (*path, name))


@pytest.mark.parametrize("change", ["removed", "added", "retyped"])
def test_a_manifest_that_was_edited_anywhere_is_found(folder, change):
    path = folder / "manifest.json"
    whole = path.read_text()
    places = list(paths(json.loads(whole)))
    assert len(places) > 60
    for place in places:
        manifest = json.loads(whole)
        parent = manifest
        for name in place[:-1]:
            parent = parent[name]
        parent.update({"mine": 1} if change == "added" else {place[-1]: ["mine"]})
        if change == "removed":
            del parent[place[-1]]
        path.write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=r"manifest\.json|format"):
            store.read(folder)


BROKEN = [b"", b"null", b"[]", b"{", b'{"format": 2}', b'{"format": "2"}', b'{"format": true}', b'{"format": NaN}', b"\xff\xfe",
          b"[" * 100_000, b'{"a":' * 100_000, b'{"format": 1}', b'{"format": 1, "suites": [], "systems": {"..": {}}}']  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_a_manifest_of_another_shape_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    for use in (lambda: quick_run.run(folder), lambda: store.read(folder)):
        with pytest.raises(InputError, match=r"manifest\.json|format"):
            use()


def test_a_run_of_a_version_to_come_is_refused_with_the_way_out(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 4}))
    with pytest.raises(InputError, match="format 4; this version reads formats 1 to 3"):
        store.read(folder)


def without_checks(folder):
    """Turn a run into one as older versions wrote them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[CHECK], manifest["missing_pictures"]
    for suite in manifest["suites"].values():
        del suite["left_out"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    for path in folder.rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != CHECK}) + "\n" for line in lines))


def test_an_older_run_is_read_and_taken_up_with_one_warning(folder, finished):
    without_checks(folder)
    path = folder / ANSWERS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    for use in (lambda: quick_run.run(folder), lambda: store.read(folder)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record = use()
        assert [warning.category for warning in caught] == [GuardWarning]
        assert "no check values" in str(caught[0].message)
        assert record.read_answers("greedy", "toy") == store.read(finished).read_answers("greedy", "toy")
        assert CHECK not in path.read_text()


@pytest.mark.filterwarnings("ignore::lvlm_guard.errors.GuardWarning")
def test_an_older_run_with_lines_of_another_shape_is_refused(folder):
    without_checks(folder)
    lines = (folder / ANSWERS).read_bytes().splitlines(keepends=True)
    for change in ({"tokens": "3"}, {"tokens": True}, {"margin": float("inf")}, {"text": None}, {"id": 3}, {"more": 1}):
        (folder / ANSWERS).write_bytes(edit(lines[0], **change) + b"".join(lines[1:]))
        with pytest.raises(InputError, match="line 1, is"):
            store.read(folder).read_answers("greedy", "toy")


@pytest.mark.parametrize("place", ["answers", "costs", "answers/greedy", "refusals", "manifest.json", "items.jsonl", ANSWERS, "lock",
                                   "refusals/greedy", "refusals/greedy/toy.json"])  # fmt: skip
def test_a_file_where_a_folder_is_due_and_the_reverse_is_an_error_of_the_library(folder, place):
    path = folder / place
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("mine")
    elif path.exists():
        path.unlink()
        path.mkdir()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.mkdir if path.suffix else path.touch)()
    outcomes = []
    for use in (lambda: quick_run.run(folder), lambda: use_everything(store.read(folder))):
        try:
            use()
        except InputError as error:  # noqa: PERF203 - each use ends on its own
            outcomes.append(str(error))
    assert all(str(folder) in message for message in outcomes)
    assert outcomes or place in ("refusals", "refusals/greedy"), "nothing reads there"


def use_everything(record):
    for system in record.systems:
        for suite in record.suites:
            record.read_answers(system, suite)
            record.costs(system, suite)
            record.refusal(system, suite)


def test_an_edited_refusal_is_found(tmp_path):
    record = quick_run.run(tmp_path, quick_run.plan(stacks={"rank": "rank"}))
    assert record.refusal("rank", "toy") is not None
    path = tmp_path / "refusals/rank/toy.json"
    for values in ({**json.loads(path.read_text()), "reason": "mine"}, {}, [1]):
        path.write_text(json.dumps(values))
        with pytest.raises(InputError, match=r"toy\.json is .*Remove that file"):
            record.refusal("rank", "toy")
    quick_run.run(tmp_path, quick_run.plan(stacks={"rank": "rank"}))
    assert record.refusal("rank", "toy") is not None, "asked again"


def test_twenty_thousand_lines_are_checked_in_no_time(tmp_path):
    ledger = Ledger(tmp_path / "answers.jsonl", "run/answers/greedy/pope")
    answer = {"id": "random:1", "text": "Yes, there is a snowboard in the image.", "tokens": 11, "margin": 3.4567}
    lines = [ledger.line(answer, number) for number in range(1, 20_001)]
    start = time.process_time()
    for number, line in enumerate(lines, 1):
        ledger.values(line, number)
    assert time.process_time() - start < 2
