"""The strategy keeps the promises that every strategy gives."""

from lvlm_guard_example import Fog

from lvlm_guard.testing import StrategyContract


class TestFog(StrategyContract):
    """On three tiny architectures: neutral, seeded, batched, beams, threads, exceptions."""

    strategy = Fog()
