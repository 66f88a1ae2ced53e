"""Ask the model about what it said, remove what it denies, and add what it affirms."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import (
    Artefact,
    Generation,
    HiddenEdit,
    InputError,
    ProcessorNeeded,
    Revision,
    check_returned,
    hookimpl,
)
from lvlm_guard.fields import ExistingFile, Template, Text, Timeout, UserFunction
from lvlm_guard_augmentation.claims import PHRASE, Level, Wording, split_sentences
from lvlm_guard_augmentation.picture_evidence import ObjectEvidence, read_evidence, remember_tokens
from lvlm_guard_augmentation.rewriting import (
    add_phrases,
    drop_relation,
    remove_pieces,
    replace_value,
    turn_relation,
    write_phrase,
)
from lvlm_guard_augmentation.scoring import NEVER, Decisions, LevelRule, ScoringRules, decide
from lvlm_guard_augmentation.weighing import ClaimWeigher

Piece = tuple[str, str]
Words = Annotated[str, Field(pattern=r"\S")]
Margin = Annotated[float, Field(ge=-NEVER, le=NEVER, allow_inf_nan=False)]
COLOURS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey", "gray",
)  # fmt: skip


@dataclass(frozen=True)
class Revise:
    """Split the answer into claims, ask the guarded model yes or no about each, drop those it answers no.

    The training-free loop of Woodpecker (arXiv 2310.16045) and Volcano (arXiv 2311.07362), with the model itself in
    place of outside detectors and trained critics. By default a claim is a phrase with a singular article, and its
    last word is the object asked for. A splitter is called with a sentence and returns pairs: a piece of it, and the
    question about that piece. Pieces in a list go alone; a sentence whose piece cannot go alone goes with it. Rounds
    end early once nothing is denied. `rounds = 0` is neutral.

    With `threshold`, `artefact` or `evidence`, claims are weighed instead: the score of a claim is the margin of yes over no
    where the answer begins (`gen.margins`), plus the evidence, or the weighted sum that `lvlm-guard fit revise` fitted. What
    scores below its threshold goes. Objects of `names`, or all that the evidence knows, are added from `add_threshold` on, to
    answers that name two objects or more and do not begin with yes or no. With
    `levels`, colour words and phrases such as "left of" are revised too: replaced by what scores best in their place, else
    dropped. `report.results["revise"]` lists every claim with question, margin, evidence and decision, row by row.
    """

    name: ClassVar[str] = "revise"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "arXiv 2310.16045, 2311.07362"
    cost: ClassVar[str] = "one short answer for each claim; one token for each where claims are weighed"
    neutral: ClassVar[dict[str, int]] = {"rounds": 0}

    rounds: Annotated[int, Field(ge=0, le=100, description="how often the answer is checked; 0 is off")] = 1
    question: Annotated[Template, Field(description="question about an object")] = "Is there a {} in the image?"
    splitter: Annotated[
        UserFunction,
        Field(description='function from a sentence to (piece, question) pairs, or "package.module:function"'),
    ] = None
    timeout: Timeout = 60.0
    threshold: Annotated[
        Margin | None, Field(description="score below which an object is dropped; None goes by words")
    ] = None
    add_threshold: Annotated[
        Margin | None, Field(description="score from which an object is added; None adds none")
    ] = None
    names: Annotated[tuple[Words, ...], Field(max_length=1000, description="objects that may be added")] = ()
    levels: Annotated[
        tuple[Level, ...], Field(min_length=1, description="what is revised where claims are weighed")
    ] = ("object",)
    values: Annotated[
        tuple[Words, ...], Field(description="words that are attributes; none: those fitted on, else colours")
    ] = ()
    attribute_question: Annotated[Text, Field(description="with {name} and {value}")] = "Is the {name} {value}?"
    relation_question: Annotated[Text, Field(description="with {name}, {direction} and {reference}")] = (
        "Is the {name} {direction} the {reference}?"
    )
    artefact: Annotated[ExistingFile | None, Field(description="file made by lvlm-guard fit revise")] = None
    evidence: Annotated[ExistingFile | None, Field(description="file made by lvlm-guard fit patch_evidence")] = None

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Read the weights and thresholds, or refuse what would be ignored."""
        if self.is_weighed:
            gen.state[self.name] = self.load_rules(gen)
        elif self.names or self.add_threshold is not None or self.levels != ("object",):
            raise InputError(
                "'revise' needs weighed claims to add objects and to revise other levels: give threshold=0.0, or an artefact."
            )

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Remember the image tokens where evidence is read off them; nothing is changed."""
        if self.evidence is not None:
            yield remember_tokens(gen, self.evidence)

    @hookimpl
    def finish(self, gen: Generation) -> Iterable[Revision]:
        """Return revised answers of the rows in which something was changed."""
        if gen.model.tokenizer is None:
            raise ProcessorNeeded("'revise' needs a tokenizer: give the guard the processor, Guard(model, processor).")
        evidence = read_evidence(gen, self.evidence) if self.is_weighed else ()
        records = []
        for row, ids in enumerate(gen.output_ids):
            answer = text = str(gen.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            of_row: list[dict[str, object]] = []
            for _ in range(self.rounds):
                before = text
                text, checked = (
                    self._weigh(gen, row, text, evidence[row]) if self.is_weighed else self._check(gen, row, text)
                )
                of_row += checked
                if text == before:
                    break
            records.append(of_row)
            if text != answer:
                yield Revision(row, text)
        gen.results[self.name] = records

    @property
    def is_weighed(self) -> bool:
        """Whether claims are weighed, rather than judged by the words yes and no."""
        return not (self.threshold is None and self.artefact is None and self.evidence is None)

    def load_rules(self, gen: Generation) -> ScoringRules:
        """Return how claims are scored and judged: as fitted, else by margin plus evidence; thresholds given here win.

        Raises:
            InputError: The artefact was fitted with evidence, and there is none; or it cannot be read.
            StrategyRefused: It was fitted on another model.
        """
        fitted = (
            ScoringRules({})
            if self.artefact is None
            else ScoringRules.from_artefact(Artefact.load(self.artefact, self.name, gen.model))
        )
        if fitted.needs_evidence and self.evidence is None:
            raise InputError(
                f"'revise' needs the evidence that {self.artefact} was fitted with: give evidence=, or fit without it."
            )
        rules = {level: fitted.by_level.get(level, STANDARD[level]) for level in self.levels}
        if "object" in rules:
            fitted_rule = rules["object"]
            keep = fitted_rule.keep if self.threshold is None else self.threshold
            add = fitted_rule.add if self.add_threshold is None else self.add_threshold
            rules["object"] = LevelRule(fitted_rule.weights, keep, add)
        return ScoringRules(
            rules, fitted.needs_evidence, self.names or fitted.names, self.values or fitted.values or COLOURS
        )

    def build_weigher(self, rules: ScoringRules) -> ClaimWeigher:
        """Return what reads claims and asks about them."""
        wording = Wording(self.question, self.attribute_question, self.relation_question)
        split = None if self.splitter is None else self._claims
        return ClaimWeigher(wording, rules, rules.values, rules.names, split)

    def _weigh(
        self, gen: Generation, row: int, text: str, evidence: ObjectEvidence | None
    ) -> tuple[str, list[dict[str, object]]]:
        """Return a text as decided, and the record of every claim."""
        weigher = self.build_weigher(gen.state[self.name])
        decisions = decide(weigher.weigh(gen, row, text, evidence), weigher.rules)
        values = weigher.find_values(gen, row, decisions.added, evidence)
        sentences = [_rewrite(gen, sentence, decisions, weigher, evidence) for sentence in split_sentences(text)]
        phrases = [write_phrase(claim.subject, values) for claim in decisions.added]
        return add_phrases("".join(sentences).strip(), phrases), decisions.records

    def _check(self, gen: Generation, row: int, text: str) -> tuple[str, list[dict[str, object]]]:
        """Return a text without the claims that the model denies in words, and the record of every claim."""
        sentences = split_sentences(text)
        claims = [self._claims(gen, sentence) for sentence in sentences]
        questions = list(dict.fromkeys(question for pairs in claims for _, question in pairs))
        answers = dict(zip(questions, gen.ask(questions, row), strict=True))
        denied = {question for question, answer in answers.items() if re.match(r"\W*no\b", answer, re.IGNORECASE)}
        revised = [
            remove_pieces(
                sentence, [piece for piece, _ in pairs], [piece for piece, question in pairs if question in denied]
            )
            for sentence, pairs in zip(sentences, claims, strict=True)
        ]
        records = [_record_words(pair, pair[1] in denied) for pairs in claims for pair in pairs]
        return "".join(revised).strip(), records

    def _claims(self, gen: Generation, sentence: str) -> Sequence[Piece]:
        """Return the (piece, question) pairs of a sentence."""
        if self.splitter is None:
            return [
                (phrase[0], self.question.replace("{}", phrase[1].split()[-1])) for phrase in PHRASE.finditer(sentence)
            ]
        claims = gen.call_user_function(self.splitter, sentence, what="splitter", timeout=self.timeout)
        needs = "'revise' needs pairs of a piece and a question: correct the splitter"
        pairs: Sequence[Piece] = check_returned(claims, tuple[tuple[Words, Words], ...], needs)
        if any(piece not in sentence for piece, _ in pairs):
            raise InputError(f"'revise' needs pieces of {sentence!r}: correct the splitter, which returned {pairs!r}.")
        return pairs


STANDARD: dict[Level, LevelRule] = {
    "object": LevelRule(),
    "attribute": LevelRule(add=0.0),
    "relation": LevelRule(add=0.0),
}
"""ScoringRules without a fit: what leans to no goes, and what leans to yes takes the place of an attribute or a relation."""


def _rewrite(
    gen: Generation, sentence: str, decisions: Decisions, weigher: ClaimWeigher, evidence: ObjectEvidence | None
) -> str:
    """Return a sentence as decided: relations first, whose phrases still read as they were found, then attributes, then objects."""
    claims_made = weigher.find_claims(gen, sentence, evidence)
    claims = [claim for claim in claims_made if claim in decisions.dropped]
    absent = {claim.subject for claim in claims if claim.level == "object"}
    for claim in [claim for claim in claims_made if claim.level == "relation" and claim.piece in sentence]:
        if absent & {claim.subject, claim.reference}:
            sentence = drop_relation(sentence, claim)
        elif claim in claims:
            sentence = (turn_relation if claim in decisions.replacing else drop_relation)(sentence, claim)
    denied = [claim.piece for claim in claims if claim.level == "object"]
    pieces = [claim.piece for claim in weigher.find_claims(gen, sentence, evidence) if claim.level == "object"]
    sentence = remove_pieces(sentence, pieces, denied)
    for claim in [claim for claim in claims if claim.level == "attribute" and claim.piece not in denied]:
        best = decisions.replacing.get(claim)
        sentence = replace_value(sentence, claim, "" if best is None else best.value)
    return sentence


def _record_words(pair: Piece, denied: bool) -> dict[str, object]:
    piece, question = pair
    decision = "dropped" if denied else "kept"
    return {"text": piece, "question": question, "margin": None, "evidence": None, "score": None, "decision": decision}
