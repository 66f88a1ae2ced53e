"""Beam search of one request whose candidates are scored one forward later, and which can go back."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")
"""The device of the beams, whatever torch's default device is."""


@dataclass(frozen=True)
class Rules:
    """How a search branches and goes back; the fields are those of `OPERA`."""

    beams: int
    candidates: int
    threshold: int
    rollbacks: int
    opening: int
    window: int


@dataclass(frozen=True)
class State:
    """Beams after some tokens: tokens and winners `[beams, tokens]`, summed log-probabilities `[beams]`."""

    tokens: Tensor
    winners: Tensor
    scores: Tensor

    @property
    def length(self) -> int:
        """Tokens of each beam."""
        return int(self.tokens.shape[1])


@dataclass(frozen=True)
class Return:
    """A way back: rows to continue in, and how many of their tokens remain valid."""

    index: Tensor
    shared: int


class Beams:
    """One request. Its rows are `candidates` copies of each beam.

    Args:
        rules: Width, candidates and when to go back.
        settings: The generation config: length penalty and early stopping.
    """

    def __init__(self, rules: Rules, settings: Any) -> None:
        self._rules = rules
        self._power = 1.0 if settings.length_penalty is None else float(settings.length_penalty)
        self._early = settings.early_stopping is True
        empty = torch.zeros(rules.beams, 0, dtype=torch.long, device=CPU)
        self._state = State(empty, empty, torch.tensor([0.0] + [-torch.inf] * (rules.beams - 1), device=CPU))
        self._past: list[State] = []
        self._banned: dict[int, set[tuple[int, int]]] = {}
        self._returns: Counter[int] = Counter()
        self._answers: list[tuple[float, Tensor]] = []
        self.is_done = False

    def propose(self, step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token that each row tries next and its logit, `[rows]` each; decided rows replay their tokens.

        Args:
            step: Tokens that the rows have.
            logits: Of the next token `[rows, vocab]`.
        """
        rules = self._rules
        if self.is_done:
            return logits.new_zeros(len(logits), dtype=torch.long), logits[:, 0]
        if step < self._state.length:
            return self._state.tokens[:, step].repeat_interleave(rules.candidates).to(logits.device), logits[:, 0]
        logits = logits[:: rules.candidates].clone()
        for beam, token in self._banned.get(step, ()):
            logits[beam, token] = -torch.inf
        if step == 0:
            values, tokens = logits[0].topk(max(rules.beams, rules.candidates))
            spare = rules.beams * rules.candidates - len(tokens)
            values = torch.nn.functional.pad(values, (0, spare), value=-torch.inf)
            tokens = torch.cat([tokens, tokens[:1].expand(spare)])
        else:
            values, tokens = (ranked.flatten() for ranked in logits.topk(rules.candidates))
        return tokens, values

    def choose(
        self, step: int, tokens: Tensor, values: Tensor, penalty: Tensor, winner: Tensor, ended: Tensor
    ) -> Tensor:
        """Return the row in which each row continues; all arguments `[rows]`, of the tokens just tried, on the CPU."""
        width, rows = self._rules.candidates, torch.arange(len(penalty), device=CPU)
        if self.is_done or step < self._state.length:
            return rows
        self._tokens = tokens.long()
        scores = self._scores(step, values - penalty)
        order = [row for row in scores.argsort(descending=True, stable=True).tolist() if scores[row] > -torch.inf]
        for row in order[: self._rules.beams]:
            if ended[row]:
                self._answers.append((float(scores[row]) / (step + 1) ** self._power, self._grow(row)))
        going = [row for row in order if not ended[row]][: self._rules.beams]
        self._banned.setdefault(step, set()).update(
            (row // width if step else 0, int(self._tokens[row])) for row in going
        )
        self._past = [*self._past[:step], self._state]
        self._advance(going, scores, winner)
        going = going + going[:1] * (self._rules.beams - len(going)) or [0] * self._rules.beams
        return torch.tensor(going, device=CPU).repeat_interleave(width)

    def retrospect(self, length: int) -> Return | None:
        """Go back if the beams, of `length` tokens each, agree on the token that they keep summing up; else return None."""
        place = None if self.is_done or self._state.length != length else self._place()
        if place is None:
            return None
        current, self._state = self._state, self._past[place]
        self._returns[place] += 1
        self._answers = [answer for answer in self._answers if len(answer[1]) <= place]
        self._banned = {step: pairs for step, pairs in self._banned.items() if step <= place}
        common = _common_length(self._state.tokens, current.tokens)  # [beams, current beams]
        shared, nearest = common.max(1)
        index = (nearest * self._rules.candidates).repeat_interleave(self._rules.candidates)
        return Return(index, int(shared.min()))

    def answer(self) -> Tensor:
        """Return the tokens of the best finished beam, or of the best beam where none could finish."""
        return max(self._answers, key=lambda answer: answer[0])[1] if self._answers else self._state.tokens[0]

    def _scores(self, step: int, penalised: Tensor) -> Tensor:
        """Return the summed log-probability of every candidate `[rows]`; candidates compete within their beam."""
        if step == 0:
            return penalised.log_softmax(0).nan_to_num(nan=-torch.inf)
        within = penalised.view(self._rules.beams, -1).log_softmax(-1)
        return (within + self._state.scores[:, None]).flatten().nan_to_num(nan=-torch.inf)

    def _grow(self, row: int) -> Tensor:
        return torch.cat([self._state.tokens[row // self._rules.candidates], self._tokens[row : row + 1]])

    def _advance(self, going: list[int], scores: Tensor, winner: Tensor) -> None:
        """Replace the beams by the rows that go on; missing beams are copies that cannot win."""
        if not going:
            self.is_done = True
            return
        rows = torch.tensor(going + going[:1] * (self._rules.beams - len(going)), device=CPU)
        parents = rows // self._rules.candidates
        totals = scores[rows]
        totals[len(going) :] = -torch.inf
        tokens = torch.cat([self._state.tokens[parents], self._tokens[rows, None]], dim=1)
        winners = torch.cat([self._state.winners[parents], winner[rows, None].long()], dim=1)
        self._state = State(tokens, winners, totals)
        best = sorted((score for score, _ in self._answers), reverse=True)[: self._rules.beams]
        hopeless = float(totals[0]) / self._state.length**self._power <= best[-1] if best else False
        self.is_done = len(best) == self._rules.beams and (self._early or hopeless)

    def _place(self) -> int | None:
        """Return how many tokens to keep, or None to go on."""
        winners = self._state.winners[self._state.scores > -torch.inf, -self._rules.window :]
        modes = [Counter(row.tolist()).most_common(1)[0][0] for row in winners]
        token = Counter(modes).most_common(1)[0][0]
        if token < self._rules.opening or bool(((winners == token).sum(1) < self._rules.threshold).any()):
            return None
        places = [place for place in (token + 1, token) if self._rules.opening <= place < self._state.length]
        return next((place for place in places if self._returns[place] < self._rules.rollbacks), None)


def _common_length(target: Tensor, current: Tensor) -> Tensor:
    """Return the length of the common beginning of every target and every current sequence `[target, current]`."""
    length = min(target.shape[1], current.shape[1])
    equal = target[:, None, :length] == current[None, :, :length]
    return equal.long().cumprod(-1).sum(-1)
