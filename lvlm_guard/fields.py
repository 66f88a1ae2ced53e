"""Types for the parameters of strategies: `from lvlm_guard.fields import Strength, Plausibility, LayerRange`.

Not imported by `import lvlm_guard`, because it brings pydantic.
"""

from lvlm_guard.strategy.fields import (
    ContrastStrength,
    Count,
    EarlierLayer,
    ExistingFile,
    Factor,
    Layer,
    LayerOutputs,
    LayerRange,
    Plausibility,
    PositiveShare,
    Probability,
    Seed,
    Share,
    Strength,
    Template,
    Text,
    Timeout,
    UserFunction,
)

__all__ = [
    "ContrastStrength",
    "Count",
    "EarlierLayer",
    "ExistingFile",
    "Factor",
    "Layer",
    "LayerOutputs",
    "LayerRange",
    "Plausibility",
    "PositiveShare",
    "Probability",
    "Seed",
    "Share",
    "Strength",
    "Template",
    "Text",
    "Timeout",
    "UserFunction",
]
