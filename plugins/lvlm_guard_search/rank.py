"""Guided decoding: sample each sentence several times, keep the one that an outside scorer finds closest to the picture."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import DecodingLoop, Generation, InputError, ProcessorNeeded, Search, check_returned, hookimpl
from lvlm_guard.fields import Count, Seed, Strength, Timeout, UserFunction

STOPS = (".", "!", "?")
Score = Annotated[float | bool, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Rank:
    """Sample sentences, keep the one with the greatest `beta mean(score) + alpha log p(answer) / tokens`.

    Deng et al., CLIP-guided decoding, arXiv 2402.15300, settings of the released code; the mean is over the sentences
    of the answer so far, log p is main's own, before temperature. The release keeps several answers side by side and
    uses SigLIP; here the best sentence is kept each time, and the scorer is whatever is given: `(picture, sentences)
    -> scores`. A sentence ends with . ! ? or where the call ends. A draw depends on the seed, the candidate and the
    number of the token alone, so neither the batch nor its order matters. Needs pictures, a tokenizer, and a cache that can forget tokens.
    `max_candidates = 0` is neutral.
    """

    name: ClassVar[str] = "rank"
    family: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 2402.15300"
    cost: ClassVar[str] = "a row for each candidate, repeated tokens, the scorer"
    neutral: ClassVar[dict[str, int]] = {"max_candidates": 0}

    scorer: UserFunction = None
    beta: Annotated[Strength, Field(description="weight of the score")] = 1.0
    alpha: Annotated[Strength, Field(description="weight of the log-probability")] = 0.01
    max_candidates: Annotated[int, Field(ge=0, le=1000, description="sentences to choose from; 0 is off")] = 3
    temperature: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False, description="of the sampling")] = 0.2
    top_k: Annotated[Count, Field(description="tokens to sample from")] = 5
    seed: Seed = 0
    timeout: Timeout = 60.0

    @hookimpl
    def search(self, gen: Generation) -> Iterable[Search]:
        """Sample and choose, sentence by sentence."""
        if self.scorer is None:
            raise InputError(
                "'rank' needs a scorer: give a function (picture, sentences) -> scores, or its import path."
            )
        if gen.prompt.pictures is None or gen.model.tokenizer is None:
            raise ProcessorNeeded(
                f"'rank' needs a tokenizer and the picture of each row: see that each row has one picture, and the guard its "
                f"processor. {gen.prompt.pictures_missing}"
            )
        yield Search(self._run, self.max_candidates)

    def _run(self, loop: DecodingLoop) -> Tensor:
        answers = [RankedAnswer() for _ in range(loop.requests)]
        while not all(answer.is_done for answer in answers):
            samples = self._round(loop, answers)
            best = [self._choose(loop.gen, row, answer, samples) for row, answer in enumerate(answers)]
            loop.select(torch.tensor(best, device=loop.generated.device).repeat_interleave(self.max_candidates))
            going = [len(answer.tokens) for answer in answers if not answer.is_done]
            if going:
                loop.rewind(min(going))
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(answer.tokens, device=loop.generated.device) for answer in answers],
            batch_first=True,
            padding_value=loop.settings.pad_token_id or 0,
        )

    def _round(self, loop: DecodingLoop, answers: "list[RankedAnswer]") -> "list[Sample]":
        """Sample a sentence for every row; rows wait for the longest."""
        samples = [
            Sample(list(answer.tokens), answer.logarithm, len(answer.tokens), over=answer.is_done)
            for answer in answers
            for _ in range(self.max_candidates)
        ]
        while not all(sample.over for sample in samples):
            step = loop.generated.shape[1]
            tokens, logarithms = self._draw(loop)
            for row, sample in enumerate(samples):
                if step >= len(sample.tokens) and not sample.over:
                    sample.tokens.append(tokens[row])
                    sample.logarithm += logarithms[row]
            fed = [sample.tokens[step] if step < len(sample.tokens) else 0 for sample in samples]
            loop.append(torch.tensor(fed, device=loop.generated.device))
            ends = loop.finished().tolist()
            for sample, end in zip(samples, ends, strict=True):
                sample.close(loop.gen.model.tokenizer, step, end=end)
        return samples

    def _draw(self, loop: DecodingLoop) -> tuple[list[int], list[float]]:
        """Draw a token for every row, by the number of the candidate within its request."""
        rows = torch.arange(loop.requests * self.max_candidates, device=loop.generated.device)
        tokens, logarithms = loop.draw(
            temperature=self.temperature, top_k=self.top_k, seed=self.seed, rows=rows % self.max_candidates
        )
        return tokens.tolist(), logarithms.tolist()

    def _choose(self, gen: Generation, row: int, answer: "RankedAnswer", samples: "list[Sample]") -> int:
        """Append the best sentence of a request to its answer; return its row."""
        first = row * self.max_candidates
        if answer.is_done or gen.prompt.pictures is None:
            return first
        candidates = samples[first : first + self.max_candidates]
        scores = self._scores(gen, row, answer, [sample.text for sample in candidates])
        values = [
            self.beta * sum(score) / max(len(score), 1) + self.alpha * sample.logarithm / len(sample.tokens)
            for score, sample in zip(scores, candidates, strict=True)
        ]
        best = values.index(max(values))
        answer.tokens, answer.logarithm, answer.is_done = (
            candidates[best].tokens,
            candidates[best].logarithm,
            candidates[best].ended,
        )
        answer.scores = scores[best]
        return first + best

    def _scores(self, gen: Generation, row: int, answer: "RankedAnswer", texts: list[str]) -> list[list[float]]:
        """Return the scores of the answer's sentences followed by each candidate's; an empty candidate adds none."""
        pictures, sentences = gen.prompt.pictures or (), [text for text in texts if text]
        if not sentences:
            return [answer.scores for _ in texts]
        assert self.scorer is not None
        returned = gen.call_user_function(self.scorer, pictures[row], sentences, what="scorer", timeout=self.timeout)
        count = len(sentences)
        scores = Annotated[tuple[Score, ...], Field(min_length=count, max_length=count)]
        needs = f"'rank' needs a finite score for each of {count} sentences: correct the scorer"
        waiting = iter(check_returned(returned, scores, needs))
        return [[*answer.scores, next(waiting)] if text else answer.scores for text in texts]


@dataclass
class RankedAnswer:
    """The part of a request's answer that is decided."""

    tokens: list[int] = field(default_factory=list)
    logarithm: float = 0.0
    scores: list[float] = field(default_factory=list)
    is_done: bool = False


@dataclass
class Sample:
    """A row: the answer so far, and a sentence that is being sampled after it."""

    tokens: list[int]
    logarithm: float
    start: int
    over: bool
    ended: bool = False
    text: str = ""

    def close(self, tokenizer: Any, step: int, *, end: bool) -> None:
        """Stop if the token fed at this step ended the call or the sentence."""
        if self.over or step < self.start or step != len(self.tokens) - 1:
            return
        self.text = tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True).strip()
        self.ended, self.over = end, end or self.text.endswith(STOPS)
