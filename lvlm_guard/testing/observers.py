"""The contract of strategies that state that they `observe`: the answer is plain generate's in every mode, and something is reported.

```python
class TestMine(ObserverContract):
    strategy = Mine()
```
"""

from __future__ import annotations

from typing import Any

from torch import equal

from lvlm_guard.testing.sequences import ALL, SequenceContract


class ObserverContract(SequenceContract):
    """The promises of every strategy that only looks: those of `SequenceContract`, but that it changes nothing, at no setting."""

    def test_it_visibly_changes_the_tokens(self) -> None:
        """It changes none of them, and leaves something in the report under its name."""
        for name, model in self._models():
            plain = self._plain(name, model, ALL)
            guarded, report = self._reported(name, model, ALL)
            assert equal(plain, guarded), f"{self._name}: {name} gives other tokens, though it states that it observes"
            assert not report.strategies[0].had_effect, f"{self._name}: {name} is reported to have had an effect"
            assert report.results.get(self._name), f"{self._name}: {name} leaves nothing in the report"

    def _at_neutral(self) -> Any:
        """Return the strategy itself: it has to be neutral as it is."""
        return self.strategy


__all__ = ["ObserverContract"]
