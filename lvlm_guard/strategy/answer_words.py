"""Yes and no as the first token of an answer, and how far logits lean to the one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lvlm_guard.errors import InputError, quote

YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")


def subtract_logits(
    logits: Tensor, tokenize: Callable[[str], Sequence[int]], unknown: int | None, yes: Sequence[str], no: Sequence[str]
) -> list[float]:
    """Return the greatest logit of the tokens that begin yes minus that of those that begin no, for rows `[rows, vocab]`.

    Raises:
        InputError: An answer has no first token that the other one has not.
    """
    beginnings = [{ids[0] for word in words if (ids := tokenize(word))} - {unknown} for words in (yes, no)]
    apart = [sorted(beginnings[index] - beginnings[1 - index]) for index in (0, 1)]
    if not all(apart):
        raise InputError(
            f"gen.margins needs a yes and a no that differ in their first tokens: give other words than {quote(yes)} and {quote(no)}."
        )
    best = [logits[:, ids].float().amax(-1) for ids in apart]
    margins: list[float] = (best[0] - best[1]).tolist()
    return margins
