"""Add what the picture shows, read off its tokens by a linear head, to the first token of an answer."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import Bias, Generation, HiddenEdit, InputError, ProcessorNeeded, Term, hookimpl
from lvlm_guard.fields import ExistingFile, Strength, Timeout, UserFunction
from lvlm_guard_evidence.answers import FirstTokens, find_options, kind_of
from lvlm_guard_evidence.captions import (
    DESCRIBES,
    CaptionWeights,
    build_caption_bias,
    read_caption_weights,
    spread_bias,
)
from lvlm_guard_evidence.claims import Claim, parse_question
from lvlm_guard_evidence.mixing import Mixing, read_mixing, weigh_options
from lvlm_guard_evidence.reading import RowEvidence, evidence_of, load_head, remember_tokens, swap_rows

DESCRIBED = "patch_evidence captions"
"""Where `gen.state` keeps which requests ask for a caption."""
CAPTION_BIAS = "patch_evidence caption bias"


@dataclass(frozen=True)
class PatchEvidence:
    """Answer short questions by what the picture shows as well: `margin * a + evidence * b + c` for yes over no.

    A linear head over the projected image tokens, fitted offline, says how likely each object that it knows is there, what it is
    like and where it stands, at one matrix product for each picture and no branch. The question is read by a small English
    parser, or by a function from the prompt's text to a `Claim` or None. The evidence is added to the first tokens of the
    answers: yes and no, colours, sides. The weights of each kind of question were fitted on calibration pictures. A question
    that cannot be read, whose object the head does not know, or for whose kind no weights were fitted, is left alone and counted
    in the report. Where weights for captions were fitted, names of objects that the picture does not show are made less likely at
    every token of one. `strength = 0` is neutral, 1 is as fitted. `swapped` is the control: every request gets the evidence of the
    next one of the call about another picture, and none where there is none.
    """

    name: ClassVar[str] = "patch_evidence"
    family: ClassVar[str] = "evidence"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "a matrix product for each picture; fitted offline"
    neutral: ClassVar[dict[str, float]] = {"strength": 0.0}

    artefact: Annotated[ExistingFile, Field(description="file made by lvlm-guard fit patch_evidence")]
    strength: Annotated[Strength, Field(description="how much of the fitted change is made")] = 1.0
    parser: Annotated[
        UserFunction,
        Field(description='function from a prompt\'s text to a Claim or None, or "package.module:function"'),
    ] = None
    swapped: Annotated[bool, Field(description="control: the evidence of another picture of the call")] = False
    captions: Annotated[bool, Field(description="whether captions are changed too, where weights were fitted")] = True
    timeout: Timeout = 60.0

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Read the head, and the questions."""
        if gen.model.tokenizer is None:
            raise ProcessorNeeded(
                "'patch_evidence' needs a tokenizer to read questions: give the guard the processor, Guard(model, processor)."
            )
        load_head(gen, self.artefact)
        texts = [read_text(gen, row) for row in range(gen.prompt.ids.shape[0])]
        gen.state[self.name] = claims = [self._parse(gen, text) for text in texts]
        pairs = zip(claims, texts, strict=True)
        gen.state[DESCRIBED] = [claim is None and DESCRIBES.search(text) is not None for claim, text in pairs]

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Remember the image tokens; nothing is changed."""
        yield remember_tokens(gen, self.artefact)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Add the evidence, where the first token is predicted; in captions, everywhere."""
        if gen.step == 0:
            yield Bias(self._compute_bias(gen))
        if self._biases_captions(gen):
            yield Bias(spread_bias(gen, self._compute_caption_bias(gen)))

    def _biases_captions(self, gen: Generation) -> bool:
        return self.captions and any(gen.state[DESCRIBED]) and self._read_caption_weights(gen) is not None

    def _read_caption_weights(self, gen: Generation) -> CaptionWeights | None:
        return read_caption_weights(load_head(gen, self.artefact).settings)

    def _compute_caption_bias(self, gen: Generation) -> Tensor:
        """Return what is added to every token of the captions `[requests, vocab]`, computed once in a call."""
        if CAPTION_BIAS not in gen.state:
            weights = self._read_caption_weights(gen)
            assert weights is not None
            evidence = evidence_of(gen, self.artefact)
            pictures = swap_rows(evidence) if self.swapped else evidence
            beginnings = FirstTokens(gen.tokenize, getattr(gen.model.tokenizer, "unk_token_id", None))
            head = load_head(gen, self.artefact)
            bias = build_caption_bias(pictures, gen.state[DESCRIBED], head, beginnings, weights, gen.logits())
            gen.state[CAPTION_BIAS] = self.strength * bias
        bias = gen.state[CAPTION_BIAS]
        assert isinstance(bias, Tensor)
        return bias

    def _parse(self, gen: Generation, text: str) -> Claim | None:
        if self.parser is None:
            return parse_question(text)
        claim = gen.call_user_function(self.parser, text, what="parser", timeout=self.timeout)
        if claim is not None and not isinstance(claim, Claim):
            raise InputError(f"'patch_evidence' needs a Claim or None: correct the parser, which returned {claim!r}.")
        return claim

    def _compute_bias(self, gen: Generation) -> Tensor:
        """Return what is added to the logits of the first token, fp32 `[rows, positions, vocab]`, and leave counts in the report."""
        logits = gen.logits()
        bias = torch.zeros_like(logits, dtype=torch.float32)
        evidence = evidence_of(gen, self.artefact)
        head = load_head(gen, self.artefact)
        mixing = read_mixing(head.settings)
        row_evidence = swap_rows(evidence) if self.swapped else list(evidence)
        beginnings = FirstTokens(gen.tokenize, getattr(gen.model.tokenizer, "unk_token_id", None))
        each = logits.shape[0] // len(row_evidence)
        outcomes = []
        for row, (claim, picture) in enumerate(zip(gen.state[self.name], row_evidence, strict=True)):
            rows = slice(row * each, (row + 1) * each)
            outcome = self._judge(claim, picture, mixing, head.values, beginnings, evidence[row] is not None)
            outcomes.append(outcome["outcome"])
            if "tokens" in outcome:
                self._add(bias[rows, 0], logits[rows, 0].float(), outcome)
        if self._biases_captions(gen):
            pairs = zip(outcomes, gen.state[DESCRIBED], strict=True)
            outcomes = ["caption" if is_described else outcome for outcome, is_described in pairs]
        gen.results[self.name] = {"requests": outcomes, "counts": dict(Counter(outcomes)), "swapped": self.swapped}
        return bias

    def _judge(
        self,
        claim: Claim | None,
        picture: RowEvidence | None,
        mixing: Mapping[str, Mixing],
        values: Sequence[str],
        beginnings: FirstTokens,
        has_picture: bool,
    ) -> dict[str, Any]:
        """Return what becomes of a question: `outcome`, and where evidence is added the tokens, log-odds and weights."""
        if claim is None:
            return {"outcome": "question not read"}
        if not has_picture:
            return {"outcome": "no image tokens"}
        kind = kind_of(claim)
        if kind not in mixing:
            return {"outcome": f"no weights for {kind}"}
        options = find_options(claim, values)
        tokens = beginnings.find(options)
        odds = [0.0] * len(options) if picture is None else weigh_options(claim, options, picture)
        if odds is None:
            return {"outcome": f"{kind}: name, value or place not known"}
        if tokens is None:
            return {"outcome": f"{kind}: answers do not begin apart"}
        outcome = kind if picture is not None else f"{kind}: no other picture to take evidence of"
        return {"outcome": outcome, "tokens": tokens, "odds": odds, "mixing": mixing[kind]}

    def _add(self, bias: Tensor, logits: Tensor, outcome: dict[str, Any]) -> None:
        """Add evidence to the rows of one request `[rows, vocab]`, in place."""
        margins = torch.stack([logits[:, ids].logsumexp(-1) for ids in outcome["tokens"]], dim=-1)
        odds = torch.tensor(outcome["odds"], device=margins.device, dtype=torch.float32)
        change = self.strength * outcome["mixing"].mix(margins, odds.expand_as(margins))
        for number, ids in enumerate(outcome["tokens"]):
            bias[:, ids] += change[:, number, None]


def read_text(gen: Generation, row: int) -> str:
    """Return the text of a prompt, without its image tokens and special ones."""
    real = gen.prompt.attention_mask[row].bool() & ~gen.prompt.image_mask[row]
    return str(gen.model.tokenizer.decode(gen.prompt.ids[row][real], skip_special_tokens=True)).strip()
