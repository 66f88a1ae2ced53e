"""The contract of bundled strategies, on two architectures: the third of the kit's is on the core, not on them."""

from __future__ import annotations

from typing import ClassVar

from lvlm_guard.testing import StrategyContract


class BundledContract(StrategyContract):
    """The public contract without sliding windows, on which the core's own tests and the slow ones of each strategy run."""

    architectures: ClassVar[tuple[str, ...]] = ("llava", "qwen2_vl")
