"""What every suite has in common: the catalogue, missing and broken files, and pictures."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from suites_of_files import OF_FILES

from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import GuardError, InputError

DATA = Path(__file__).parent / "data"
ANSWERS = ("Yes", "No", "", "A. on", "(1)", "A man, two dogs and a bus.\nNo", "不", "\0", "no " * 50)
FUZZED = 210


def suite(name):
    return catalogue().find(name).suite


@pytest.mark.parametrize("name", OF_FILES)
def test_a_suite_satisfies_the_protocol(name):
    one = suite(name)()
    assert isinstance(one, Suite)
    assert one.name == name
    assert set(one.levels) <= set(LEVELS)
    items = one.load(DATA / name).items
    assert len(items) >= 10
    assert len({item.id for item in items}) == len(items)
    assert {item.level for item in items} <= set(one.levels)
    assert json.loads(json.dumps([item.truth for item in items])) == [item.truth for item in items]
    assert items == one.load(DATA / name).items
    for parser in one.parsers:
        names = [measure.name for measure in one.measures(parser)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", OF_FILES)
def test_equal_arguments_make_equal_suites_that_cannot_change(name):
    assert suite(name)() == suite(name)()
    with pytest.raises(AttributeError):
        suite(name)().part = "all"


@pytest.mark.parametrize("name", OF_FILES)
@pytest.mark.parametrize("data", ["nowhere", None])
def test_a_missing_file_is_named_with_its_source_and_layout(name, data, tmp_path):
    one = suite(name)()
    with pytest.raises(InputError) as raised:
        one.load(data and tmp_path / data)
    message = str(raised.value)
    asked = [need for need in one.required if need.path in message]
    assert len(asked) == 1
    assert asked[0].source in message
    assert asked[0].layout in message


@pytest.mark.parametrize("name", OF_FILES)
def test_an_unknown_parser_is_refused(name):
    one = suite(name)()
    one.load(DATA / name)
    with pytest.raises(InputError, match=f"{name} has no parser 'oracle'"):
        one.measures("oracle")
    with pytest.raises(InputError, match=f"{name} has no parser 'oracle'"):
        one.official([], "oracle")


IMPOSSIBLE = [
    ("amber", {"part": "generativ"}), ("amber", {"max_new_tokens": 0}), ("chair", {"images": -1}), ("chair", {"images": "5"}),
    ("chair", {"seed": 1.5}), ("chair", {"drop_unfinished": "no"}), ("hallusionbench", {"text_only": 1}),
    ("hallusionbench", {"max_new_tokens": True}), ("mme", {"prompt_suffix": None}), ("reefknot", {"part": "vqa"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), IMPOSSIBLE)
def test_impossible_arguments_are_refused_by_name(name, arguments):
    with pytest.raises(InputError, match=f"{name}: {next(iter(arguments))}=.* is not possible"):
        suite(name)(**arguments)


def test_what_stands_before_the_end_of_a_torn_array_is_read(tmp_path):
    whole = (DATA / "pope" / "aokvqa_pope_seem_random.json").read_text(encoding="utf-8")
    (tmp_path / "aokvqa_pope_seem_random.json").write_text(whole[: whole.index('"question_id": 4')], encoding="utf-8")
    loaded = suite("pope")(source="aokvqa").load(tmp_path)
    assert len(loaded.items) == 3
    assert [(problem.file, problem.line) for problem in loaded.problems] == [("aokvqa_pope_seem_random.json", 20)]
    assert "the rest of the file could not be read" in loaded.problems[0].what


def test_one_line_of_other_bytes_is_one_problem(tmp_path):
    lines = (DATA / "reefknot" / "YESNO.jsonl").read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"boy", b"bo\xff")
    (tmp_path / "YESNO.jsonl").write_bytes(b"\n".join(lines))
    loaded = suite("reefknot")("yesno").load(tmp_path)
    assert len(loaded.items) == 9
    assert [problem.line for problem in loaded.problems] == [3]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe\x00"])
def test_a_file_without_a_usable_row_is_refused_with_its_layout(content, tmp_path):
    (tmp_path / "HallusionBench.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"HallusionBench\.json is not the questions of HallusionBench: .*Expected layout"
    ):
        suite("hallusionbench")().load(tmp_path)


FOLDERS = {
    "pope": "val2014", "chair": "val2014", "sugarcrepe": "val2017", "amber": "image", "reefknot": "VG_100K_2",
    "hallusionbench": "hallusion_bench", "mme": "",
}  # fmt: skip


@pytest.mark.parametrize("name", OF_FILES)
def test_a_picture_is_found_and_a_missing_or_broken_one_named(name, tmp_path):
    one = suite(name)()
    image = next(item.image for item in one.load(DATA / name).items if item.image)
    path = tmp_path / FOLDERS[name] / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (3, 2), 90).save(path)
    picture = one.picture(tmp_path, image)
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (3, 2), (90, 90, 90))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="cannot be read"):
        one.picture(tmp_path, image)
    path.unlink()
    with pytest.raises(InputError, match=f"{re.escape(image)} is missing.*Expected layout"):
        one.picture(tmp_path, image)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/hostname", "a\0b"])
def test_a_picture_outside_the_data_folder_is_refused(image, tmp_path):
    with pytest.raises(InputError, match="is no name of a picture inside the data folder"):
        suite("pope")().picture(tmp_path, image)


def truncated(draw, content):
    return content[: draw.randrange(len(content))]


def scrambled(draw, content):
    at = draw.randrange(len(content))
    return content[:at] + draw.randbytes(draw.randint(1, 9)) + content[at + draw.randint(0, 9) :]


def retyped(draw, content):
    """One value becomes another type or a huge number."""
    values = list(re.finditer(rb'(?<=: )("[^"\n]*"|\d+|\[\])', content)) or [re.match(rb".?", content)]
    spot = draw.choice(values)
    other = draw.choice(
        [b"null", b"[1, {}]", b'{"a": 2}', b"-7", b"1e999", b"9" * 5000, b"true", b'""', b'"\\ud800"', b"NaN"]
    )
    return content[: spot.start()] + other + content[spot.end() :]


def rekeyed(draw, content):
    keys = sorted(set(re.findall(rb'"\w+"(?=:)', content))) or [b"a"]
    return content.replace(draw.choice(keys), b'"other"', draw.choice([1, -1]))


def emptied(draw, content):
    return draw.choice(
        [
            b"",
            b"\n \n",
            b"[]",
            b"{}",
            b"null",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"\xff\xfe",
            b"\xef\xbb\xbf" + content,
        ]
    )


MUTATIONS = (truncated, scrambled, retyped, rekeyed, emptied)


def test_broken_files_give_items_or_an_error_of_the_library(tmp_path):
    """Seeded mutations of every file; whatever is read is then scored with odd answers."""
    draw = random.Random(20)
    outcomes = Counter()
    for at in range(FUZZED):
        name = OF_FILES[at % len(OF_FILES)]
        folder = tmp_path / str(at)
        shutil.copytree(DATA / name, folder)
        path = draw.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
        path.write_bytes(draw.choice(MUTATIONS)(draw, path.read_bytes()))
        outcomes[outcome(draw, name, folder)] += 1
        shutil.rmtree(folder)
    print("broken files:", dict(outcomes))
    assert sum(outcomes.values()) == FUZZED
    assert min(outcomes[kind] for kind in ("refused", "read in part", "read")) >= 10


def outcome(draw, name, folder):
    one = suite(name)()
    try:
        loaded = one.load(folder)
    except GuardError:
        return "refused"
    assert loaded.items
    assert all(problem.what and problem.file for problem in loaded.problems)
    said = [AnsweredItem(item, draw.choice(ANSWERS)) for item in loaded.items]
    for parser in one.parsers:
        for measure in one.measures(parser):
            measure.value(said)
        one.official(said, parser)
    json.dumps([item.truth for item in loaded.items])
    with pytest.raises(GuardError):
        one.picture(folder, next(item.image for item in loaded.items if item.image))
    return "read in part" if loaded.problems else "read"
