"""The habit of an item: what the other pictures of its suite lead to expect, and never what its own picture shows."""

from __future__ import annotations

import json
import random

import pytest

from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.parsers import ours
from lvlm_guard.bench.suites import mme_habits
from lvlm_guard.bench.suites.amber import Amber
from lvlm_guard.bench.suites.habits import FEWEST, ObjectHabits, Statement, StatementHabits
from lvlm_guard.bench.suites.mme import Mme
from lvlm_guard.bench.suites.pope import Pope
from lvlm_guard.bench.suites.yes_no import Part, habit_measures

OPPOSITE = {"yes": "no", "no": "yes"}
KITCHEN, STREET = ("fork", "knife", "cup"), ("car", "bus", "sign")
ANSWERERS = {
    "follows": lambda item: item.extra.get("habit") or "no",
    "inverts": lambda item: OPPOSITE.get(item.extra.get("habit"), "no"),
    "never": lambda item: "no",
    "looks": lambda item: item.truth,
}


def pope_rows(pictures=40, kind="adversarial"):
    """Kitchens and streets in turn, most with a person; every fifth lacks what goes with the rest, and has what does not."""
    rows = []
    for picture in range(pictures):
        usual, odd = (KITCHEN, STREET) if picture % 2 else (STREET, KITCHEN)
        breaks = picture % 5 == 0
        stranger = odd[picture // 2 % 3]
        truths = {usual[0]: True, usual[1]: True, usual[2]: not breaks, stranger: breaks, "person": picture % 7 > 1}
        rows += [
            {
                "question_id": f"{kind}{picture}{name}",
                "image": f"{picture}.jpg",
                "text": f"Is there a {name} in the image?",
                "label": "yes" if is_there else "no",
            }
            for name, is_there in truths.items()
        ]
    return rows


def write_pope(folder, rows, kind="adversarial"):
    folder.mkdir(exist_ok=True)
    (folder / f"coco_pope_{kind}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def measure(suite, items, answerer, ending=""):
    said = [AnsweredItem(item, str(ANSWERERS[answerer](item))) for item in items]
    names = ("habit_balanced", "habit_true", "habit_breaking")
    measured = {one.name: one.value(said) for one in suite.measures("ours")}
    return tuple(pytest.approx(measured[f"{name}{ending}"], nan_ok=True) for name in names)


def test_the_habit_of_an_object_is_what_the_company_leads_to_expect(tmp_path):
    items = Pope().load(write_pope(tmp_path, pope_rows())).items
    habits = {item.id: item.extra["habit"] for item in items}
    assert habits["adversarial:adversarial1cup"] == "yes"
    assert habits["adversarial:adversarial5cup"] == "yes", "it is absent there, and expected"
    assert habits["adversarial:adversarial5sign"] == "no", "it is present there, and not expected"
    assert habits["adversarial:adversarial8knife"] == "no"
    assert {(item.truth, item.extra["habit"]) for item in items} >= {(t, h) for t in OPPOSITE for h in OPPOSITE}


@pytest.mark.parametrize("ending", ["_object", "_adversarial"])
def test_only_looking_beats_one_half_where_habit_is_balanced(tmp_path, ending):
    items = Pope().load(write_pope(tmp_path, pope_rows())).items
    found = {name: measure(Pope(), items, name, ending) for name in ANSWERERS}
    assert found == {"follows": (0.5, 1, 0), "inverts": (0.5, 0, 1), "never": (0.5, 0.5, 0.5), "looks": (1, 1, 1)}


def test_turning_a_truth_changes_the_habit_of_others_and_never_its_own(tmp_path):
    rows = pope_rows(20)
    before = {item.id: item.extra["habit"] for item in Pope().load(write_pope(tmp_path, rows)).items}
    changed = 0
    for row in rows:
        turned = [{**one, "label": OPPOSITE[one["label"]]} if one is row else one for one in rows]
        after = {item.id: item.extra["habit"] for item in Pope().load(write_pope(tmp_path, turned)).items}
        assert after[f"adversarial:{row['question_id']}"] == before[f"adversarial:{row['question_id']}"]
        changed += after != before
    assert changed > len(rows) / 4, "truths matter to the habits of other pictures"


def test_the_same_question_in_another_file_does_not_give_the_truth_away(tmp_path):
    rows = pope_rows(20)
    for kind in ("adversarial", "popular"):
        write_pope(tmp_path, [{**row, "question_id": f"{kind}{at}"} for at, row in enumerate(rows)], kind)
    both = Pope().load(tmp_path).items
    once = Pope().load(write_pope(tmp_path / "once", rows)).items
    assert [item.extra["habit"] for item in both] == [item.extra["habit"] for item in once] * 2


def test_too_few_pictures_and_questions_of_another_form_have_no_habit(tmp_path):
    few = Pope().load(write_pope(tmp_path / "few", pope_rows(FEWEST))).items
    assert {item.extra["habit"] for item in few} == {None}
    assert all(
        value != value
        for value in [one.value([AnsweredItem(few[0], "yes")]) for one in habit_measures(ours, Part("all"))]
    )
    odd = [*pope_rows(), {"question_id": 1, "image": "1.jpg", "text": "Do you see it?", "label": "yes"}]
    assert Pope().load(write_pope(tmp_path / "odd", odd)).items[-1].extra["habit"] is None


def test_what_is_as_often_present_as_absent_has_no_habit():
    """Whether one leaves a picture in or out must not decide it: of balanced pictures, all others lean the other way."""
    aspects = [[("state", "sky", "blue")]]
    balanced = [Statement(str(at), aspects, at % 2 == 0) for at in range(20)]
    assert {StatementHabits(balanced).habit(one.picture, aspects) for one in balanced} == {None}
    present = {str(at): ["sky", *(["sun"] if at % 2 else ["rain"])] for at in range(20)}
    objects = ObjectHabits(present, [(picture, name) for picture in present for name in ("sun", "rain")])
    assert {objects.habit(picture, "sun") for picture in present} == {None}


def test_truths_drawn_at_random_are_as_often_habitual_as_not():
    draw, aspects = random.Random(0), [[("state", "sky", "blue")]]
    matches = []
    for _ in range(150):
        statements = [Statement(str(at), aspects, draw.random() < 0.5) for at in range(20)]
        estimate = StatementHabits(statements)
        habits = [estimate.habit(one.picture, aspects) for one in statements]
        matches += [(habit == "yes") == one.true for habit, one in zip(habits, statements, strict=True) if habit]
    assert len(matches) > 1000
    assert sum(matches) / len(matches) == pytest.approx(0.5, abs=0.04)


def test_statements_follow_their_own_kind_and_few_of_them_what_they_share():
    rare, common, value = ("state", "tent", "red"), ("state", "apple", "red"), ("state", "red")
    statements = [Statement(f"a{at}", [[common], [value]], at > 0) for at in range(30)]
    statements += [Statement(f"n{at}", [[("state", "sky", "red")], [value]], False) for at in range(4)]
    habits = StatementHabits(statements)
    assert habits.habit("a0", [[common], [value]]) == "yes"
    assert habits.habit("n0", [[("state", "sky", "red")], [value]]) == "no"
    assert habits.habit("new", [[rare], [value]]) == "yes", "red is said truly more often than not"
    assert habits.habit("new", [[rare]]) is None, "nothing is known of tents"
    repeated = StatementHabits([*statements, *[statements[-1]] * 50])
    assert repeated.habit("new", [[rare], [value]]) == "yes", "a question that is put twice counts once"


def write_amber(folder, seed=0):
    """Images of a beach or a forest, whose sky is mostly blue, and where people mostly touch the ground."""
    (folder / "query").mkdir(parents=True)
    draw, annotations, queries = random.Random(seed), [], []

    def add(image, kind, query, truth):
        number = len(annotations) + 1
        entry = {"truth": truth} if isinstance(truth, str) else truth
        annotations.append({"id": number, "type": kind, **entry})
        queries.append({"id": number, "image": f"AMBER_{image}.jpg", "query": query})

    worlds = (("sea", "sand", "boat"), ("tree", "grass", "deer"), ("oven", "pan", "sink"))
    for image in range(60):
        there, breaks = worlds[image % 3], image % 5 == 0
        stranger = worlds[(image + 1) % 3][image // 3 % 3]
        truth = [*there[:2], stranger if breaks else there[2], *(["person"] if image % 7 > 1 else [])]
        add(image, "generative", "Describe this image.", {"truth": truth, "hallu": [there[2]] if breaks else []})
        absent = there[2] if breaks else stranger
        add(image, "discriminative-hallucination", f"Is there a {absent} in this image?", "no")
        colour = "red" if breaks else "blue"
        for asked in ("red", "blue"):
            add(
                image,
                "discriminative-attribute-state",
                f"Is the sky {asked} in this image?",
                "yes" if asked == colour else "no",
            )
        number = "three" if breaks else "two"
        for asked in ("three", "two"):
            add(
                image,
                "discriminative-attribute-number",
                f"Are there {asked} people in this image?",
                "yes" if asked == number else "no",
            )
        contact = draw.random() < (0.2 if breaks else 1.0)
        kind = "discriminative-relation" if contact else "relation"
        add(image, kind, "Is there direct contact between the person and ground?", "yes" if contact else "no")
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "query" / "query_all.json").write_text(json.dumps(queries))
    for name, kinds in {
        "generative": ["generative"],
        "discriminative-existence": ["discriminative-hallucination"],
    }.items():
        wanted = {row["id"] for row in annotations if row["type"] in kinds}
        (folder / "query" / f"query_{name}.json").write_text(
            json.dumps([row for row in queries if row["id"] in wanted])
        )
    (folder / "relation.json").write_text(json.dumps({name: [] for world in [*worlds, ["person"]] for name in world}))
    (folder / "safe_words.txt").write_text("image\n")
    return folder


def test_all_kinds_of_amber_have_habits_and_only_looking_beats_one_half(tmp_path):
    amber = Amber()
    items = amber.load(write_amber(tmp_path / "amber")).items
    habits = {(item.prompt, item.truth): item.extra["habit"] for item in items if isinstance(item.truth, str)}
    extras = {item.image: item.extra for item in items if item.kind == "discriminative-hallucination"}
    assert habits["Is the sky red in this image?", "yes"] == "no"
    assert habits["Is the sky blue in this image?", "no"] == "yes"
    assert habits["Are there two people in this image?", "yes"] == "yes"
    assert habits["Is there direct contact between the person and ground?", "no"] == "yes"
    assert extras["AMBER_10.jpg"]["habit"] == "yes", "a deer is expected there"
    assert extras["AMBER_1.jpg"]["habit"] == "no"
    for ending in ("", "_attribute"):
        found = {name: measure(amber, items, name, ending) for name in ANSWERERS}
        assert found == {"follows": (0.5, 1, 0), "inverts": (0.5, 0, 1), "never": (0.5, 0.5, 0.5), "looks": (1, 1, 1)}
    assert measure(amber, items, "never", "_existence") == (1, 1, 1), (
        "every answer there is no, and the yes-ratio tells"
    )


def test_a_part_of_amber_has_the_habits_of_the_whole(tmp_path):
    folder = write_amber(tmp_path / "amber")
    whole = {item.id: item.extra for item in Amber().load(folder).items}
    part = Amber("discriminative-existence").load(folder).items
    assert len(part) == 60
    assert {item.id: item.extra for item in part}.items() <= whole.items()
    assert {item.extra["habit"] for item in part} >= {"yes", "no"}


def name_all(names):
    return " ".join(f"There is a {name}." for name in names)


def test_descriptions_of_amber_are_split_by_what_habit_leads_to_name(tmp_path):
    amber = Amber("generative")
    items = amber.load(write_amber(tmp_path / "amber")).items
    assert items[10].extra == {"expected": ["tree", "grass", "person"], "unexpected": ["oven"]}
    blind = [AnsweredItem(item, name_all(item.extra["expected"])) for item in items]
    full = [AnsweredItem(item, name_all(item.truth["truth"])) for item in items]
    names = ("cover_habit_balanced", "cover_habit_true", "cover_habit_breaking")
    scores = [
        [{one.name: one.value(said) for one in amber.measures("ours")}[name] for name in names]
        for said in (blind, full)
    ]
    assert scores == [[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]]


def write_mme(folder):
    """Kitchens with a pen on the left of a plate, mostly; two apples, mostly; red ones."""
    for picture in range(24):
        odd = picture % 4 == 0
        colour, side = ("green", "right") if odd else ("red", "left")
        rare, usual = ("dog", "tent", "harp")[picture // 4 % 3], ("cup", "spoon")[picture // 4 % 2]
        pairs = {
            "existence": ("Is there a {} in this image?", (rare, usual) if odd else (usual, rare)),
            "count": ("Are there {} apples in this image?", ("three", "two") if odd else ("two", "three")),
            "color": ("Is there a {} apple in this image?", (colour, "red" if odd else "green")),
            "position": ("Is the pen on the {} of the plate?", (side, "left" if odd else "right")),
        }
        for kind, (question, (true, false)) in pairs.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            lines = [
                f"{question.format(word)} Please answer yes or no.\t{answer}"
                for word, answer in ((true, "Yes"), (false, "No"))
            ]
            (folder / kind / f"{picture}.txt").write_text("\n".join(lines))
    return folder


def test_all_tasks_of_mme_have_habits_and_only_looking_beats_one_half(tmp_path):
    items = Mme().load(write_mme(tmp_path / "mme")).items
    assert {item.extra["habit"] for item in items} >= {"yes", "no"}
    for ending in ("", "_object", "_attribute", "_relation"):
        found = {name: measure(Mme(), items, name, ending) for name in ANSWERERS}
        assert found == {
            "follows": (0.5, 1, 0),
            "inverts": (0.5, 0, 1),
            "never": (0.5, 0.5, 0.5),
            "looks": (1, 1, 1),
        }, ending


@pytest.mark.parametrize(
    ("kind", "prompt", "aspect"),
    [
        ("count", "Is there a total of two person appear in the image?", ("count", "person", "two")),
        ("count", "Are there two pieces of pizza in this image?", ("count", "pizza", "two")),
        ("count", "Is there only one bowl in the image? Please answer yes or no.", ("count", "bowl", "one")),
        ("color", "Is there a red and white coat in the image?", ("color", "coat", "red and white")),
        (
            "position",
            "Is the cat on the right side of the bus in the image?",
            ("position", "cat", "on the right side of", "bus"),
        ),
        ("position", "Is it raining?", None),
        ("count", "How many?", None),
    ],
)
def test_the_forms_of_mmes_questions_are_read(kind, prompt, aspect):
    found = mme_habits._aspects(Item("1", "a.jpg", prompt, "yes", "attribute", kind))
    assert (found[0][0] if found else None) == aspect


@pytest.mark.parametrize(
    ("suite", "write"), [(Pope(), lambda f: write_pope(f, pope_rows())), (Amber(), write_amber), (Mme(), write_mme)]
)
def test_official_figures_do_not_look_at_habits(tmp_path, suite, write):
    items = suite.load(write(tmp_path / "data")).items
    draw = random.Random(1)
    said = [AnsweredItem(item, draw.choice(("Yes", "No", "perhaps"))) for item in items]
    bare = [AnsweredItem(Item(**{**vars(one.item), "extra": {}}), one.text) for one in said]
    assert suite.official(said, "ours") == suite.official(bare, "ours")


def test_suites_whose_files_say_nothing_of_habit_measure_none():
    for name in ("reefknot", "hallusionbench", "sugarcrepe"):
        suite = catalogue().find(name).suite()
        assert not [one.name for one in suite.measures(suite.parsers[0]) if "habit" in one.name]
