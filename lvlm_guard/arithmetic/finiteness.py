"""Whether every row of logits had a token to choose: noted on the device, and read where hardly anybody waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lvlm_guard.errors import NonFiniteLogits, quote
from lvlm_guard.strategy.generation import Generation


class FinitenessCheck:
    """Rows of main, branches and combined logits whose best logit is NaN or infinite, over one guarded call.

    Read at once on a CPU; on an accelerator at tokens 1, 2, 3, 5, 9 and so on, and at the end. Single tokens may be `-inf`.
    """

    def __init__(self) -> None:
        self._broken: dict[tuple[str, torch.device], Tensor] = {}

    def record(self, gen: Generation, combined: Tensor | None) -> None:
        """Look at the logits of one forward.

        Raises:
            NonFiniteLogits: A row without a finite best logit was found by now, and it is time to read.
        """
        for name, logits in _name_logits(gen, combined):
            broken = ~logits.amax(-1).isfinite().all()
            place = name, broken.device
            self._broken[place] = self._broken[place] | broken if place in self._broken else broken
        if gen.logits().device.type == "cpu" or gen.step & (gen.step - 1) == 0:
            self.check()

    def check(self) -> None:
        """Read what was recorded, once for each device.

        Raises:
            NonFiniteLogits: A row had no finite best logit.
        """
        for device in dict.fromkeys(device for _, device in self._broken):
            broken = {name: rows for (name, place), rows in self._broken.items() if place == device}
            if bool(torch.stack(list(broken.values())).any()):
                name = next(name for name, rows in broken.items() if rows)
                raise NonFiniteLogits(
                    f"The {name} are NaN, infinite or all removed. Check the model in this dtype with plain generate, then "
                    "what the strategies edit, restrict and add."
                )


def _name_logits(gen: Generation, combined: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Name the logits of a forward, main first: what is broken there is broken in all that comes of it."""
    assert gen.forward is not None
    yield "logits of the model", gen.forward.main
    for key, logits in gen.forward.branches.items():
        yield f"logits of branch {quote(key)}", logits
    if combined is not None:
        yield "combined logits", combined
