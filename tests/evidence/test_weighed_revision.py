"""Claims weighed by margin and evidence: what is denied goes, what is seen comes, and sentences still read as sentences."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from lvlm_guard_augmentation import Revise
from lvlm_guard_augmentation.claims import Wording, find_objects, find_relations
from lvlm_guard_augmentation.picture_evidence import READER
from lvlm_guard_augmentation.rewriting import add_phrases, fit_article
from lvlm_guard_augmentation.scoring import LevelRule, ScoringRules

from lvlm_guard import Artefact, Guard, InputError
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.strategy.prompt import ModelInfo
from lvlm_guard.testing import SequenceContract, TinyProcessor, tiny
from lvlm_guard.testing.sequences import TEXTS, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")
SHORT = {
    "question": "{}?",
    "attribute_question": "{name} {value}?",
    "relation_question": "{name} {direction} {reference}?",
}


class Leaning:
    """A stand-in for a guarded call: what was said, and the questions that the model leans to yes on, by how much."""

    def __init__(self, text, margins):
        self.text, self.by_question, self.asked = text, margins, []
        self.output_ids, self.model, self.results, self.state = range(1), ModelInfo(tokenizer=self), {}, {}

    def decode(self, row, **_):
        return self.text

    def margins(self, questions, row):
        self.asked.append(list(questions))
        return [self.by_question.get(question, -5.0) for question in questions]


def revise(text, margins, **settings):
    gen = Leaning(text, margins)
    strategy = Revise(**{"threshold": 0.0, **SHORT, **settings})
    strategy.start(gen)
    revised = [revision.text for revision in strategy.finish(gen)]
    return (revised[0] if revised else text), gen


def test_margins_decide_in_place_of_words():
    text = "there is a mug , a red egg and a pan ."
    seen = {"mug?": 3.0, "egg?": -0.2, "pan?": 1.0}
    got, gen = revise(text, seen)
    assert got == "there is a mug and a pan ."
    assert gen.asked == [["mug?", "egg?", "pan?"]]  # one batch
    assert revise(text, seen, threshold=-0.5)[0] == text
    assert revise(text, seen, threshold=2.0)[0] == "there is a mug ."
    assert [(one["text"], one["margin"], one["evidence"], one["decision"]) for one in gen.results["revise"][0]] == [
        ("mug", 3.0, None, "kept"), ("egg", -0.2, None, "dropped"), ("pan", 1.0, None, "kept"),
    ]  # fmt: skip


def test_what_is_seen_is_added_and_asked_in_the_same_batch():
    names = {"add_threshold": 2.0, "names": ("mug", "spoon", "egg", "kite")}
    seen = {"mug?": 3.0, "pan?": -1.0, "spoon?": 4.0, "egg?": 2.5, "kite?": 1.0}
    got, gen = revise("There is a mug and a pan.", seen, **names)
    assert got == "There is a mug, a spoon and an egg."
    assert gen.asked == [["mug?", "pan?", "spoon?", "egg?", "kite?"]]
    assert [one["decision"] for one in gen.results["revise"][0]] == ["kept", "dropped", "added", "added", "not added"]
    assert revise("two mugs and spoons .", seen, **names)[0] == "two mugs and spoons . there is an egg ."


@pytest.mark.parametrize("text", ["no", "Yes, there is a mug and a pan.", "red", "a mug", "Nothing to see.", ""])
def test_nothing_is_added_to_answers_that_describe_nothing(text):
    seen = {"mug?": 3.0, "pan?": 3.0, "spoon?": 4.0}
    got, gen = revise(text, seen, add_threshold=2.0, names=("mug", "pan", "spoon"))
    assert got == text
    assert all(question != "spoon?" for questions in gen.asked for question in questions)
    assert revise("a mug and a pan", seen, add_threshold=2.0, names=("spoon",))[0] == "a mug, a pan and a spoon"


def test_colours_are_replaced_or_go():
    text = "there is a red mug and an orange pan ."
    seen = {"mug?": 3.0, "pan?": 3.0, "mug red?": -2.0, "mug orange?": 2.0, "mug blue?": 1.0, "pan orange?": -1.0}
    levels = {"levels": ("object", "attribute"), "values": ("red", "orange", "blue")}
    assert revise(text, seen, **levels)[0] == "there is an orange mug and a pan ."
    assert revise(text, seen | {"mug?": -1.0}, **levels)[0] == "there is a pan ."
    added = {"add_threshold": 2.0, "names": ("egg",)}
    got, gen = revise(
        text, seen | {"egg?": 5.0, "egg blue?": 1.0, "pan orange?": 1.0, "mug red?": 1.0}, **levels, **added
    )
    assert got == "there is a red mug , an orange pan and a blue egg ."
    assert len(gen.asked) == 2  # colours of what is added are asked for once it is known


@pytest.mark.parametrize(("text", "denies", "affirms", "wanted"), [
    ("A mug left of a pan.", "mug left of pan?", "mug right of pan?", "A mug right of a pan."),
    ("A mug to the left of a pan and an egg.", "mug left of pan?", "", "A mug, a pan and an egg."),
    ("A mug above a pan.", "mug above pan?", "", "A mug and a pan."),
    ("A mug under a pan.", "mug below pan?", "mug above pan?", "A mug above a pan."),
    ("I see a mug. The mug is left of the pan.", "mug left of pan?", "", "I see a mug."),
    ("A mug left of a pan.", "pan?", "", "A mug."),
])  # fmt: skip
def test_relations_are_turned_or_go(text, denies, affirms, wanted):
    seen = {"mug?": 3.0, "pan?": 3.0, "egg?": 3.0, "mug left of pan?": 1.0} | {denies: -1.0, affirms: 1.0}
    assert revise(text, seen, levels=("object", "relation"))[0] == wanted


def test_places_end_a_phrase():
    wording = Wording("{}", "", "{name} {direction} {reference}")
    assert [one.subject for one in find_objects("a red mug left of a pan in an image", wording)] == ["mug", "pan"]
    assert [one.subject for one in find_objects("a traffic light and a light", wording, ("traffic light",))] == [
        "traffic light",
        "light",
    ]
    found = find_relations("the mug is on the right side of the old pan .", wording)
    assert [one.text for one in found] == ["mug right of pan"]


@pytest.mark.parametrize(("word", "wanted"), [
    ("egg", "an egg"), ("mug", "a mug"), ("umbrella", "an umbrella"), ("unicorn", "a unicorn"), ("hour", "an hour"),
    ("one", "a one"), ("uniform", "a uniform"), ("ice", "an ice"),
])  # fmt: skip
def test_articles(word, wanted):
    assert f"{fit_article('a', word)} {word}" == wanted


def test_lists_grow_as_the_text_writes_them():
    assert add_phrases("I see a mug, a pan, and a cup.", ["a kite"]) == "I see a mug, a pan, a cup, and a kite."
    assert add_phrases("there is a mug .", ["a kite", "a pan"]) == "there is a mug , a kite and a pan ."
    assert (
        add_phrases("A mug is on a table. I see a pan and a cup.", ["a kite"])
        == "A mug is on a table. I see a pan, a cup and a kite."
    )
    assert add_phrases("", ["a kite"]) == "There is a kite."


class Seeing:
    """Evidence of one picture, by name; what is not listed is not known."""

    def __init__(self, **odds):
        self.odds, self.names = odds, tuple(odds)

    def existence(self, name):
        return self.odds.get(name)

    def attribute(self, name, value):
        return 2.0 if (name, value) == ("mug", "blue") else None

    def relation(self, subject, direction, reference):
        return None


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """Let the reader of evidence see a mug surely, a kite, and no pan."""
    reader = types.ModuleType(READER)
    reader.evidence_of = lambda gen, artefact: [Seeing(mug=4.0, pan=-3.0, kite=3.0, boat=-6.0)]
    monkeypatch.setitem(sys.modules, READER, reader)
    path = tmp_path / "head"
    path.write_text("stands for a head")
    return path


def test_evidence_adds_to_margins_and_knows_names(evidence):
    got, gen = revise("there is a mug and a pan .", {"mug?": -1.0, "pan?": 1.0, "kite?": 1.0}, threshold=None,
                      evidence=evidence, add_threshold=3.5)  # fmt: skip
    assert got == "there is a mug and a kite ."
    assert gen.asked == [["mug?", "pan?", "kite?"]]  # nobody asks for the boat, which the evidence denies
    assert [one["evidence"] for one in gen.results["revise"][0]] == [4.0, -3.0, 3.0]


def test_evidence_chooses_which_colour_to_ask_for(evidence):
    levels = {"levels": ("attribute",), "values": ("red", "green", "blue")}
    got, gen = revise("there is a red mug .", {"mug blue?": -1.0}, evidence=evidence, **levels)
    assert (got, gen.asked) == ("there is a blue mug .", [["mug red?", "mug blue?"]])


def test_without_a_reader_evidence_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, READER, None)
    path = tmp_path / "head"
    path.write_text("stands for a head")
    with pytest.raises(InputError, match="install it, or leave evidence out"):
        revise("there is a mug .", {}, evidence=path)


@pytest.mark.parametrize("ignored", [{"names": ("mug",)}, {"add_threshold": 1.0}, {"levels": ("attribute",)}])
def test_what_words_would_ignore_is_refused(ignored):
    with pytest.raises(InputError, match="needs weighed claims"):
        Revise(**ignored).start(Leaning("", {}))


def save_rules(path, model, **settings):
    rules = ScoringRules({"object": LevelRule((0.5, 1.0, 2.0, 0.0), keep=1.0, add=4.0)})
    settings = {"levels": ["object"], "names": ["kite"], **settings}
    Artefact("revise", rules.to_tensors(), {**describe_model(model), "settings": settings}).save(path)
    return path


def test_fitted_weights_and_thresholds(tmp_path):
    model, _ = tiny("llava")
    path = save_rules(tmp_path / "rules.safetensors", model)
    gen = Leaning("there is a mug and a pan .", {"mug?": 0.0, "pan?": -0.3, "kite?": 1.8})
    gen.model = ModelInfo(model.config, gen)
    strategy = Revise(artefact=path, **SHORT)
    strategy.start(gen)
    assert [one.text for one in strategy.finish(gen)] == ["there is a mug and a kite ."]
    assert [one["score"] for one in gen.results["revise"][0]] == pytest.approx([1.5, 0.9, 4.1])
    with pytest.raises(InputError, match="needs the evidence that"):
        Revise(artefact=save_rules(tmp_path / "other.safetensors", model, with_evidence=True)).start(gen)


def claim_sentences(sentence):
    """Each sentence is one claim."""
    return [(sentence.strip(), f"w14 {sentence.strip()}")]


@pytest.mark.slow
class TestWeighedRevision(SequenceContract):
    strategy = Revise(splitter=claim_sentences, threshold=0.14)
    architectures = ("llava",)
    explosions = (3, SequenceContract.tokens + 1)  # in the answer, and in a question about it


def test_margins_of_a_model_are_recomputed():
    model, _ = tiny("llava")
    processor = TinyProcessor("llava")
    texts = []
    for threshold in (-100.0, 0.0, 100.0):
        guard = Guard(model, processor, [Revise(splitter=claim_sentences, threshold=threshold)])
        inputs = guard.inputs(images=pictures(), text=TEXTS)
        output = guard.generate(**inputs, max_new_tokens=8, do_sample=False)
        texts.append(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :]))
        records = guard.report.results["revise"]
        for picture, of_row in zip(pictures(), records, strict=True):
            for record in of_row:
                plain = Guard(model, processor, [])
                asked = plain.inputs(images=[picture], text=[f"user <image> {record['question']}"])
                logits = plain.generate(
                    **asked, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
                ).logits[0][0]
                yes, no = (
                    {5 + sum(map(ord, word)) % 50 for word in (answer, answer.title(), answer.upper())}
                    for answer in ("yes", "no")
                )
                wanted = logits[sorted(yes - no)].max() - logits[sorted(no - yes)].max()
                torch.testing.assert_close(torch.tensor(record["margin"]), wanted, atol=1e-4, rtol=0)
                assert record["decision"] == ("kept" if record["margin"] >= threshold else "dropped")
    kept, _, nothing = texts
    assert any(kept)
    assert not any(nothing)
