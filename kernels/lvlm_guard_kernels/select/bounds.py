"""How far below a row's best token one can lie and still be drawn; nothing beyond needs to be listed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.select.draw import Draw

HOPELESS = 27.8
"""A token this much below the best, in log-probability, weighs less than one unit of `reference.UNIT`, so that top-p counts
nothing for it, and noise, which spans 24.4, cannot lift it over the best."""
SLACK = 2.0**-20
"""Room for the rounding of scores over the temperature, as a share of the best logit."""


FARTHEST = -1e30
"""Under a temperature that reaches further, nothing is left out."""


class Bound(NamedTuple):
    """Tokens survive from the best logit down to `reach` (negative), and `slack` times the best logit's size further."""

    reach: float
    slack: float


def find_bound(combination: Combination, draw: Draw) -> Bound | None:
    """Return the bound that plausibility sets, or without it the least from which a token can be drawn; None if none holds.

    Without plausibility, main's logits say which tokens cannot win only where nothing is added to them.
    """
    if combination.beta > 0.0:
        return Bound(combination.log_beta, 0.0)
    weight = combination.main_weight
    if combination.sources or combination.bias is not None or isinstance(weight, Tensor) or weight != 1.0:
        return None
    if draw.greedy:
        return Bound(0.0, 0.0)
    reach = -HOPELESS * draw.temperature
    return Bound(reach, SLACK) if reach > FARTHEST else None
