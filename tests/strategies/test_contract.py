"""The bundled strategies keep the contract."""

from lvlm_guard_contrastive import ICD, M3ID, VCD, VDD

from lvlm_guard.testing import StrategyContract


class TestVCD(StrategyContract):
    strategy = VCD()


class TestM3ID(StrategyContract):
    strategy = M3ID(decay=0.5)  # visible at the first token


class TestVDD(StrategyContract):
    strategy = VDD()


class TestICD(StrategyContract):
    strategy = ICD()
