"""Types for the parameters of strategies: each states its bounds and a description, which lists and cards show.

```python
from lvlm_guard.fields import ContrastStrength, Plausibility


@dataclass(frozen=True)
class Mine:
    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
```

To describe a parameter in words of its own, or to narrow it, annotate it again; whatever the outer `Field` leaves out stays:
`Annotated[Strength, Field(description="weight of the penalty")]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

Strength: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False, description="strength of the effect")]
"""A finite number from 0, which is neutral."""

ContrastStrength: TypeAlias = Annotated[Strength, Field(description="strength of the contrast")]
"""The weight of a contrast: a `Strength`."""

Factor: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False, description="factor; 1 changes nothing")]
"""A finite factor from 0; 1 is neutral."""

Share: TypeAlias = Annotated[float, Field(ge=0, le=1, description="share of the whole")]
"""A number in [0, 1]; 0 is neutral."""

PositiveShare: TypeAlias = Annotated[float, Field(gt=0, le=1, description="share of the whole")]
"""A number in (0, 1]."""

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1, description="probability")]
"""A number in [0, 1] that probabilities are compared with."""

Plausibility: TypeAlias = Annotated[float, Field(ge=0, le=1, description="plausibility, relative to the best token")]
"""`beta` of `Plausible`, in [0, 1]; 0 keeps every token."""

Count: TypeAlias = Annotated[int, Field(ge=1, description="number of them")]
"""A whole number from 1."""

Seed: TypeAlias = Annotated[int, Field(description="seed of the random draws")]
"""Seed of a generator; any whole number."""

Timeout: TypeAlias = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="seconds that one call of the function may take")
]
"""Seconds, above 0 and finite: the `timeout` of `gen.call_user_function`."""

UserFunction: TypeAlias = Annotated[
    str | SkipJsonSchema[Callable[..., Any]] | None, Field(description='function, or "package.module:function"')
]
"""A function of the user's or its import path, for `gen.call_user_function`; or None."""

Template: TypeAlias = Annotated[str, Field(pattern=r"\{\}", description="text with {} where a name goes")]
"""Text that holds `{}`, for `str.format`."""

Layer: TypeAlias = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0, le=1)]
"""A layer by its number, counted from 0, or by a fraction of the depth; `gen.model.layer_number` gives the number."""

EarlierLayer: TypeAlias = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0, lt=1)]
"""A `Layer` that, as a fraction, lies before the end of the decoder."""

LayerRange: TypeAlias = Annotated[
    tuple[Layer, Layer],
    Field(description="layers, the second excluded: numbers counted from 0, or fractions of the depth"),
]
"""A half-open range of layers, as `AttentionEdit` and `HiddenEdit` take it."""

LayerOutputs: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1)], ...],
    Field(min_length=1, description="layers read: numbers counted from 1, or fractions of the depth"),
]
"""Outputs of one layer or more, as `Readout` takes them."""
