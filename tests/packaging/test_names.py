"""Names are nouns and verbs of the field: no new name is a pronoun, a participle or an adverb by itself."""

import ast

import pytest
from bound_names import SHELVES, count_by_room, read_checkout, read_file

ALLOWED = {
    "kernels": 3,
    "lvlm_guard": 6,
    "lvlm_guard/arithmetic": 2,
    "lvlm_guard/bench": 38,
    "lvlm_guard/cli": 1,
    "lvlm_guard/strategy": 6,
    "lvlm_guard/testbed": 3,
    "lvlm_guard/testing": 1,
    "plugins": 1,
}
"""How many such names each room still has. A room that is cleaned lowers its number; no room raises it."""


def test_no_room_has_more_or_fewer_of_these_names_than_allowed(checkout):
    banned = [bound for bound in read_checkout(checkout) if bound.is_banned]
    counts = count_by_room(banned)
    wrong = {room for room in {*counts, *ALLOWED} if counts[room] != ALLOWED.get(room, 0)}
    lines = [f"{bound.path}:{bound.line}: {bound.name}" for bound in banned if bound.room in wrong]
    verdicts = [describe(room, counts[room], ALLOWED.get(room, 0)) for room in sorted(wrong)]
    assert not wrong, "\n".join(["", *lines, *verdicts])


def describe(room, count, allowed):
    fix = "rename the new ones" if count > allowed else f"lower ALLOWED[{room!r}] to {count}"
    return f"{room}: {count} such names, {allowed} allowed; {fix}"


def test_every_shelf_is_read(checkout):
    paths = {bound.path for bound in read_checkout(checkout)}
    assert {path.split("/")[0] for path in paths} == set(SHELVES)
    assert {"lvlm_guard/guard.py", "kernels/lvlm_guard_kernels/dispatch.py"} <= paths


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def told(): pass", ["told"]),
        ("async def asked(): pass", ["asked"]),
        ("class Own: pass", ["Own"]),
        ("def f(one, *others, kept=1, **rest): pass", ["one", "others", "kept", "rest"]),
        ("_found = 1", ["_found"]),
        ("here: int = 1", ["here"]),
        ("now += 1", ["now"]),
        ("first, (one, *rest) = value", ["one", "rest"]),
        ("for one in values: pass", ["one"]),
        ("with opened() as given: pass", ["given"]),
        ("[one for one in values]", ["one"]),
        ("lambda said: 1", ["said"]),
        ("(known := 1)", ["known"]),
        ("import numpy as mine", ["mine"]),
        ("from numpy import array as held", ["held"]),
        ("try: pass\nexcept ValueError as which: pass", ["which"]),
        ("def f(self):\n    self._seen = self.shape = 1", ["_seen"]),
        ("match value:\n    case [one, *others]: pass\n    case {'a': 1, **rest}: pass", ["one", "others", "rest"]),
        ("put = 1", ["put"]),
    ],
)
def test_a_bound_name_is_seen(source, names, tmp_path):
    assert banned_in(source, tmp_path) == names


@pytest.mark.parametrize(
    "source",
    [
        "token = one + given.told(kept=1)",
        "def put(): pass",
        "other_tokens, known_ids, whole_layers = 1, 2, 3",
        "class A:\n    def __eq__(self, other): pass",
        "value.kept = 1",
        "import done\nfrom made import held",
    ],
)
def test_other_names_are_left_alone(source, tmp_path):
    assert banned_in(source, tmp_path) == []


def banned_in(source, folder):
    path = folder / "module.py"
    path.write_text(source, encoding="utf-8")
    return [bound.name for bound in read_file(path, folder) if bound.is_banned]


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("lvlm_guard/guard.py", "lvlm_guard"),
        ("lvlm_guard/bench/running/runner.py", "lvlm_guard/bench"),
        ("kernels/lvlm_guard_kernels/dispatch.py", "kernels"),
        ("plugins/lvlm_guard_layers/dola.py", "plugins"),
    ],
)
def test_a_room_is_a_folder_of_the_package_or_a_whole_shelf(path, room, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("told = 1", encoding="utf-8")
    assert [bound.room for bound in read_checkout(tmp_path)] == [room]


def test_no_two_classes_share_a_name(checkout):
    """One name for one thing, and one thing for one name; examples in docstrings do not count."""
    places: dict[str, list[str]] = {}
    for shelf in SHELVES:
        for path in sorted((checkout / shelf).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(path.relative_to(checkout).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
