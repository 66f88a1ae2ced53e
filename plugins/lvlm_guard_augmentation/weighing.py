"""The claims of an answer and what may be added to it, each with margin, evidence and score; all asked in one batch."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from lvlm_guard import Generation
from lvlm_guard_augmentation.claims import (
    OPPOSITE,
    SentenceClaim,
    Wording,
    find_attributes,
    find_objects,
    find_relations,
    mentions,
    split_sentences,
)
from lvlm_guard_augmentation.picture_evidence import ObjectEvidence
from lvlm_guard_augmentation.scoring import NEVER, JudgedClaim, ScoringRules

LEAST_OBJECTS = 2
"""Objects that a description names at least."""

ANSWERS = re.compile(r"\W*(?:yes|no)\b", re.IGNORECASE)
"""How an answer to a question about one thing begins."""

ClaimToAsk = tuple[SentenceClaim, bool]
"""A claim, and whether the answer makes it."""


@dataclass(frozen=True)
class ClaimWeigher:
    """Reads claims, asks about them and scores them.

    Args:
        wording: How the model is asked.
        rules: How claims are scored; levels without a rule are not read.
        values: What attributes may be.
        names: Objects that may be added; none stands for all that the evidence knows.
        split: Splits a sentence into claims about objects in place of the phrases with an article.
    """

    wording: Wording
    rules: ScoringRules
    values: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    split: Callable[[Generation, str], Sequence[tuple[str, str]]] | None = None

    def weigh(self, gen: Generation, row: int, text: str, evidence: ObjectEvidence | None) -> list[JudgedClaim]:
        """Return every claim of a text, what could stand in its place, and what could be added."""
        statements = [
            claim for sentence in split_sentences(text) for claim in self.find_claims(gen, sentence, evidence)
        ]
        unsaid_claims = [*self._find_rivals(statements, evidence), *self._find_additions(text, statements, evidence)]
        claims = [(claim, True) for claim in dict.fromkeys(statements)] + [
            (claim, False) for claim in dict.fromkeys(unsaid_claims)
        ]
        return self.judge(gen, row, claims, evidence)

    def find_claims(self, gen: Generation, sentence: str, evidence: ObjectEvidence | None) -> list[SentenceClaim]:
        """Return the claims of a sentence."""
        names_known = {*self.names, *(evidence.names if evidence is not None else ())}
        if self.split is not None:
            pieces = self.split(gen, sentence)
            objects = [SentenceClaim("object", piece, piece, question) for piece, question in pieces]
            return objects if "object" in self.rules.by_level else []
        objects = find_objects(sentence, self.wording, tuple(names_known))
        levels = {
            "object": objects,
            "attribute": find_attributes(objects, self.wording, self.values),
            "relation": find_relations(sentence, self.wording, tuple(names_known)),
        }
        return [claim for level, claims in levels.items() if level in self.rules.by_level for claim in claims]

    def judge(
        self, gen: Generation, row: int, claims: Sequence[ClaimToAsk], evidence: ObjectEvidence | None
    ) -> list[JudgedClaim]:
        """Return claims with margin, evidence and score; every question is asked once, all in one batch."""
        questions = list(dict.fromkeys(claim.question for claim, _ in claims))
        margins = dict(zip(questions, gen.margins(questions, row), strict=True))
        return [self._judge(claim, is_said, margins[claim.question], evidence) for claim, is_said in claims]

    def find_values(
        self, gen: Generation, row: int, added: Sequence[SentenceClaim], evidence: ObjectEvidence | None
    ) -> dict[str, str]:
        """Return the likeliest value of each added object, where attributes are revised."""
        if "attribute" not in self.rules.by_level or not added:
            return {}
        questions_of_values = [
            (self.wording.ask_attribute("", claim.subject, value), False) for claim in added for value in self.values
        ]
        judged = self.judge(gen, row, questions_of_values, evidence)
        best = {
            claim.subject: max(
                (entry for entry in judged if entry.claim.subject == claim.subject), key=lambda entry: entry.score
            )
            for claim in added
        }
        return {name: entry.claim.value for name, entry in best.items()}

    def _judge(
        self, claim: SentenceClaim, is_said: bool, margin: float, evidence: ObjectEvidence | None
    ) -> JudgedClaim:
        bounded = min(max(margin, -NEVER), NEVER)
        odds = None if evidence is None else read_odds(claim, evidence)
        score = self.rules.by_level[claim.level].score(bounded, odds, is_said=is_said)
        return JudgedClaim(claim, is_said, bounded, odds, score)

    def _find_rivals(self, statements: Sequence[SentenceClaim], evidence: ObjectEvidence | None) -> list[SentenceClaim]:
        """Return the other values of attributes, and the opposites of relations."""
        rivals = []
        for claim in statements:
            if claim.level == "attribute":
                rivals += [
                    self.wording.ask_attribute("", claim.subject, value) for value in self._list_values(claim, evidence)
                ]
            if claim.level == "relation":
                direction = OPPOSITE[claim.direction]
                rivals.append(self.wording.ask_relation("", claim.subject, direction, claim.reference))
        return rivals

    def _list_values(self, claim: SentenceClaim, evidence: ObjectEvidence | None) -> list[str]:
        """Return the values asked for in place of one: the one with most evidence, or all."""
        unsaid_claims = [value for value in self.values if value != claim.value]
        odds = {} if evidence is None else {value: evidence.attribute(claim.subject, value) for value in unsaid_claims}
        names_known = {value: odd for value, odd in odds.items() if odd is not None}
        return [max(names_known, key=lambda value: names_known[value])] if names_known else unsaid_claims

    def _find_additions(
        self, text: str, statements: Sequence[SentenceClaim], evidence: ObjectEvidence | None
    ) -> list[SentenceClaim]:
        """Return objects that a description does not name; with evidence, those that it speaks for."""
        rule = self.rules.by_level.get("object")
        if rule is None or rule.add >= NEVER or self.split is not None:
            return []
        names = self.names or (evidence.names if evidence is not None else ())
        named = {name for name in names if mentions(text, name)}
        if not is_description(text, named | {claim.subject for claim in statements if claim.level == "object"}):
            return []
        odds = {name: None if evidence is None else evidence.existence(name) for name in names}
        unsaid = [name for name in names if name not in named]
        return [self.wording.ask_object("", name) for name in unsaid if (odd := odds[name]) is None or odd > 0]


def is_description(text: str, objects: Collection[str]) -> bool:
    """Return whether an answer, which names these objects, tells what a picture shows: not yes or no, nor one thing that was asked for."""
    return len(objects) >= LEAST_OBJECTS and ANSWERS.match(text) is None


def read_odds(claim: SentenceClaim, evidence: ObjectEvidence) -> float | None:
    """Return the log-odds of a claim; None where they cannot be told."""
    if claim.level == "attribute":
        return evidence.attribute(claim.subject, claim.value)
    if claim.level == "relation":
        return evidence.relation(claim.subject, claim.direction, claim.reference)
    return evidence.existence(claim.subject)
