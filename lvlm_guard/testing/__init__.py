"""The public test kit: tiny models, the recomputing oracle, and the contract every strategy inherits.

`StrategyContract` compares logits; `SequenceContract` is for strategies that search, edit the prompt or revise, and
`ObserverContract` for those that only look.
"""

from lvlm_guard.testing.contract import StrategyContract as StrategyContract
from lvlm_guard.testing.observers import ObserverContract as ObserverContract
from lvlm_guard.testing.processing import TinyProcessor as TinyProcessor
from lvlm_guard.testing.recompute import Formula as Formula
from lvlm_guard.testing.recompute import Oracle as Oracle
from lvlm_guard.testing.recompute import Recorder as Recorder
from lvlm_guard.testing.sequences import SequenceContract as SequenceContract
from lvlm_guard.testing.tiny import ARCHITECTURES as ARCHITECTURES
from lvlm_guard.testing.tiny import tiny as tiny

__all__ = [
    "ARCHITECTURES",
    "Formula",
    "ObserverContract",
    "Oracle",
    "Recorder",
    "SequenceContract",
    "StrategyContract",
    "TinyProcessor",
    "tiny",
]
