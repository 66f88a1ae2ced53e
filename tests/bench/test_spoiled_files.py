"""Files of suites as things go wrong with them: each suite, each of its files, each kind of fault."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from suites_of_files import OF_FILES

from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.suites.files import BadRow, check_picture_name
from lvlm_guard.errors import InputError

DATA = Path(__file__).parent / "data"
FILES = [
    (name, path.relative_to(DATA / name).as_posix())
    for name in OF_FILES
    for path in sorted((DATA / name).rglob("*"))
    if path.is_file() and (name, path.name) not in (("reefknot", "VQA.jsonl"), ("pope", "aokvqa_pope_seem_random.json"))
]
"""Every file that a suite reads with its default arguments."""

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
INSTEAD = {
    "a git-LFS pointer": LFS,
    "an HTML page": b"<!doctype html>\n<html><body>404</body></html>",
    "an HTML page, with a mark": b"\xef\xbb\xbf  <HTML><body>Sign in</body></HTML>",
    "an XML page": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a gzip archive": b"\x1f\x8b\x08\x00" + b"\x00" * 40,
    "a ZIP archive": b"PK\x03\x04" + b"\x00" * 40,
}


def load(name, folder, **arguments):
    return catalogue().find(name).suite(**arguments).load(folder)


@pytest.fixture
def copy(tmp_path):
    def make(name):
        return shutil.copytree(DATA / name, tmp_path / "data")

    return make


def end_of(name, folder):
    """What loading says: the message of its error, or of its problems."""
    try:
        return " ".join(problem.what for problem in load(name, folder).problems)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_what_a_failed_download_leaves_is_named_as_such(name, file, copy):
    folder = copy(name)
    for kind, content in INSTEAD.items():
        (folder / file).write_bytes(content)
        assert f"{Path(file).name} is {kind.partition(',')[0]}" in end_of(name, folder), kind


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_folder_where_a_file_is_due_is_named(name, file, copy):
    folder = copy(name)
    (folder / file).unlink()
    (folder / file).mkdir()
    assert "is a folder, and should be a file" in end_of(name, folder)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_file_where_the_data_folder_is_due_is_named(name, tmp_path):
    (tmp_path / "data").write_text("{}")
    with pytest.raises(InputError, match="data is a file, not a folder that holds"):
        load(name, tmp_path / "data")


def change_every_row(name, folder, change):
    """Apply a change to all JSON objects that are rows of the suite's files."""
    for path in [path for path in folder.rglob("*.json*") if path.name != "relation.json"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl" or (text.lstrip()[0] == "{" and "\n{" in text):
            rows = [change(json.loads(line)) for line in text.splitlines() if line.strip()]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            path.write_text(json.dumps(change_rows(json.loads(text), change)), encoding="utf-8")


def change_rows(document, change):
    if isinstance(document, list):
        return [change(row) if isinstance(row, dict) else row for row in document]
    return {
        key: change_rows(value, change)
        if isinstance(value, list)
        else change(value)
        if isinstance(value, dict)
        else value
        for key, value in document.items()
    }


OUTSIDE = (
    "../secret.jpg",
    "/etc/passwd",
    "a/../../b.jpg",
    "..\\secret.jpg",
    "C:\\secret.jpg",
    "a\0.jpg",
    "x" * 300 + ".jpg",
    "x/" * 3000 + "x.jpg",
    "",
    ".",
)
PICTURE_KEYS = {"image", "filename", "image_id", "file_name"}


@pytest.mark.parametrize("name", [name for name in OF_FILES if name != "mme"])
@pytest.mark.parametrize("picture", OUTSIDE)
def test_a_row_whose_picture_leaves_the_data_folder_is_not_used(name, picture, copy):
    """The pictures of MME are named by the files themselves."""
    folder = copy(name)
    change_every_row(
        name,
        folder,
        lambda row: {
            key: picture if key in PICTURE_KEYS and isinstance(value, str) else value for key, value in row.items()
        },
    )
    try:
        items = load(name, folder).items
    except InputError:
        return
    assert all(item.image is None or check_picture_name(item.image) for item in items)
    assert picture not in {item.image for item in items}


@pytest.mark.parametrize("picture", [picture for picture in OUTSIDE if picture])
def test_names_that_leave_the_folder_are_refused_wherever_they_come_from(picture, tmp_path):
    with pytest.raises(BadRow, match="no name of a picture inside"):
        check_picture_name(picture)
    (tmp_path / "secret.jpg").write_bytes(b"")
    for name in OF_FILES:
        with pytest.raises(InputError, match=r"is no name of a picture inside the data folder"):
            catalogue().find(name).suite().picture(tmp_path / "data", picture)


@pytest.mark.parametrize("picture", ["snow man.jpg", "雪だるま.jpg", "a/b/c.png", "..jpg", "été…jpg", "a..b.jpg"])
def test_odd_names_inside_the_folder_are_fine(picture, tmp_path):
    path = tmp_path / "val2014" / check_picture_name(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path, "PNG")
    assert catalogue().find("pope").suite().picture(tmp_path, picture).size == (3, 2)


@pytest.mark.parametrize("name", [name for name in OF_FILES if name not in ("mme", "reefknot")])
def test_ids_that_occur_twice_are_problems_and_the_first_counts(name, copy):
    """The rows of MME and Reefknot have no ids: their lines are."""
    folder = copy(name)
    whole = load(name, folder)

    def double(path):
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if text.lstrip()[0] == "[" else None
        if document is not None:
            path.write_text(json.dumps([*document, *(changed(row) for row in document)]), encoding="utf-8")
        elif name == "chair":
            document = json.loads(text)
            key = "images" if "images" in document else None
            if key:
                document[key] += [{**row, "file_name": "other.jpg"} for row in document[key]]
            path.write_text(json.dumps(document), encoding="utf-8")
        elif name == "sugarcrepe":
            document = json.loads(text)
            key, row = next(iter(document.items()))
            path.write_text(text.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(changed(row))}}}", encoding="utf-8")
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *map(changed, rows)]), encoding="utf-8")

    def changed(row):
        return {
            key: {"yes": "no", "no": "yes"}.get(value, value) if isinstance(value, str) else value
            for key, value in row.items()
        }

    for path in folder.rglob("*.json*"):
        if path.name not in ("relation.json", "captions_val2014.json"):
            double(path)
    if name == "sugarcrepe":
        with pytest.raises(InputError, match="occurs twice in one object"):
            load(name, folder)
        return
    loaded = load(name, folder)
    assert loaded.items == whole.items
    assert sum("occurred before" in problem.what for problem in loaded.problems) >= len(whole.items) / 2


TWICE = (
    b'{"image_id": "9", "query_prompt": "Is it on it?", "label": "yes", "label": "no", "relation_type": "perception"}\n'
)


def test_a_key_that_occurs_twice_makes_a_row_unusable(copy):
    folder = copy("reefknot")
    path = folder / "YESNO.jsonl"
    path.write_bytes(TWICE + path.read_bytes())
    loaded = load("reefknot", folder, part="yesno")
    assert "the key 'label' occurs twice" in loaded.problems[0].what
    assert loaded.problems[0].line == 1


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_python_takes_for_json_and_nobody_else_does_is_refused(constant, copy):
    path = copy("hallusionbench") / "HallusionBench.json"
    path.write_bytes(re.sub(rb'"figure_id": "\d+"', b'"figure_id": ' + constant, path.read_bytes()))
    with pytest.raises(InputError, match=f"{constant.decode()} is no JSON"):
        load("hallusionbench", path.parent)


def test_a_line_of_mme_that_is_not_utf_8_is_a_problem_not_another_question(copy):
    folder = copy("mme")
    path = min((folder / "existence").rglob("*.txt"))
    whole = load("mme", folder)
    path.write_bytes(path.read_bytes().replace(b"there", b"th\xffre", 1))
    loaded = load("mme", folder)
    assert len(loaded.items) == len(whole.items) - 1
    assert "not UTF-8" in loaded.problems[0].what
    assert not any("\ufffd" in item.prompt for item in loaded.items)


def test_images_without_reference_captions_are_problems_and_a_foreign_file_is_refused(copy):
    folder = copy("chair")
    path = folder / "captions_val2014.json"
    document = json.loads(path.read_text())
    chosen = load("chair", folder).items[0].id
    kept = [row for row in document["annotations"] if str(row["image_id"]) != chosen]
    path.write_text(json.dumps({**document, "annotations": kept}))
    assert f"there is no caption of the image {chosen}" in [problem.what for problem in load("chair", folder).problems]
    foreign = [{**row, "image_id": row["image_id"] + 10**6} for row in document["annotations"]]
    path.write_text(json.dumps({**document, "annotations": foreign}))
    with pytest.raises(InputError, match="has no caption of any image chosen"):
        load("chair", folder)


@pytest.mark.parametrize(
    "ids", ["[1.5]", "[true]", "[null]", "[[1]]", '["a"]', "1_0", "-1", "1e1", "[NaN]", "[" * 5000, "9" * 5000]
)
def test_ids_of_chair_are_whole_numbers(ids, copy):
    folder = copy("chair")
    (folder / "mine.txt").write_text(ids)
    with pytest.raises(InputError, match=r"mine\.txt is not a list of image ids"):
        load("chair", folder, ids="mine.txt")


@pytest.mark.parametrize("files", ["../*.json", "/etc/*", ".", "a\0b", "**/../x*.json"])
def test_a_glob_that_leaves_the_data_folder_is_refused(files, copy):
    with pytest.raises(InputError, match="pope"):
        load("pope", copy("pope"), files=files)


PARTS = {
    "generative": ["generative"],
    "discriminative": ["discriminative-hallucination", "discriminative-attribute-state", "discriminative-relation", "relation"],
    "discriminative-existence": ["discriminative-hallucination"],
    "discriminative-attribute": ["discriminative-attribute-state"],
    "discriminative-relation": ["discriminative-relation", "relation"],
}  # fmt: skip


def split_amber(folder, *parts):
    """Replace the file of all questions by those of some parts, as the repository has them."""
    whole = json.loads((folder / "query/query_all.json").read_text())
    kinds = {row["id"]: row["type"] for row in json.loads((folder / "annotations.json").read_text())}
    (folder / "query/query_all.json").unlink()
    for part in parts:
        rows = [
            row
            for row in whole
            if any(kinds[row["id"]].startswith(kind.rpartition("-state")[0] or kind) for kind in PARTS[part])
        ]
        (folder / f"query/query_{part}.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_amber_is_read_from_its_own_file_or_from_one_that_holds_it(part, copy):
    folder = copy("amber")
    from_all = load("amber", folder, part=part).items
    assert {item.kind for item in from_all} >= set(PARTS[part])
    split_amber(folder, part)
    assert load("amber", folder, part=part).items == from_all
    suite = catalogue().find("amber").suite(part=part)
    suite.load(folder)
    assert suite.measures("official")


@pytest.mark.parametrize("parts", [("generative", "discriminative"), ("generative", *list(PARTS)[2:])])
def test_all_of_amber_is_read_from_the_files_of_its_parts(parts, copy):
    folder = copy("amber")
    whole = load("amber", folder).items
    split_amber(folder, *parts)
    assert sorted(item.id for item in load("amber", folder).items) == sorted(item.id for item in whole)


def test_a_part_of_amber_whose_file_is_not_there_is_refused(copy):
    folder = copy("amber")
    split_amber(folder, "generative")
    for part in ("all", "discriminative", "discriminative-relation"):
        with pytest.raises(InputError, match=r"amber: .*query.* does not exist"):
            load("amber", folder, part=part)
