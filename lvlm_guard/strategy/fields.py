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
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.json_schema import SkipJsonSchema

from lvlm_guard.files import is_file
from lvlm_guard.strategy.user_functions import AllowedName, allow_name

STRONGEST = 100.0
"""Bound of strengths; published ones are at most 3. Far above it, logits leave what half precision can tell apart."""
MOST = 10_000
DAY = 86_400.0


def _check_function(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Let an import path pass only if it may be imported; `allow` of the validation's context holds further ones."""
    if isinstance(value, AllowedName):
        return value
    function = handler(value)
    return allow_name(function, (info.context or {}).get("allow", ())) if isinstance(function, str) else function


def _check_file(path: Path, info: ValidationInfo) -> Path:
    """Find a file; `folder` of the validation's context is the folder where a relative path is looked for first."""
    folder = (info.context or {}).get("folder")
    if folder is not None and is_file(folder / path):
        return Path(folder / path)
    if not is_file(path):
        raise ValueError("there is no such file" if folder is None else f"there is no such file, nor one in {folder}")
    return path


Strength: TypeAlias = Annotated[
    float, Field(ge=0, le=STRONGEST, allow_inf_nan=False, description="strength of the effect")
]
"""A number in [0, 100]; 0 is neutral."""

ContrastStrength: TypeAlias = Annotated[Strength, Field(description="strength of the contrast")]
"""The weight of a contrast: a `Strength`."""

Factor: TypeAlias = Annotated[
    float, Field(ge=0, le=STRONGEST, allow_inf_nan=False, description="factor; 1 changes nothing")
]
"""A factor in [0, 100]; 1 is neutral."""

Share: TypeAlias = Annotated[float, Field(ge=0, le=1, description="share of the whole")]
"""A number in [0, 1]; 0 is neutral."""

PositiveShare: TypeAlias = Annotated[float, Field(gt=0, le=1, description="share of the whole")]
"""A number in (0, 1]."""

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1, description="probability")]
"""A number in [0, 1] that probabilities are compared with."""

Plausibility: TypeAlias = Annotated[float, Field(ge=0, le=1, description="plausibility, relative to the best token")]
"""`beta` of `Plausible`, in [0, 1]; 0 keeps every token."""

Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST, description="number of them")]
"""A whole number from 1 to 10,000."""

Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63, description="seed of the random draws")]
"""Seed of a generator; any whole number of 64 bits."""

Timeout: TypeAlias = Annotated[
    float, Field(gt=0, le=DAY, allow_inf_nan=False, description="seconds that one call of the function may take")
]
"""Seconds, above 0 and at most a day: the `timeout` of `gen.call_user_function`."""

UserFunction: TypeAlias = Annotated[
    str | SkipJsonSchema[Callable[..., Any]] | None,
    WrapValidator(_check_function),
    Field(description='function, or "package.module:function"'),
]
"""A function of the user's, or None, or an import path that is allowed, for `gen.call_user_function`."""

Text: TypeAlias = Annotated[str, Field(max_length=MOST, description="text")]
"""Text of at most 10,000 characters."""

Template: TypeAlias = Annotated[
    str, Field(pattern=r"^[^{}]*\{\}[^{}]*$", max_length=MOST, description="text with {} where a name goes")
]
"""Text that holds `{}` once and no other brace; a name is put in its place."""

ExistingFile: TypeAlias = Annotated[Path, AfterValidator(_check_file), Field(description="path of a file")]
"""The path of a file that is there when the stack is built."""

Layer: TypeAlias = Annotated[int, Field(ge=0, le=MOST, strict=True)] | Annotated[float, Field(ge=0, le=1)]
"""A layer by its number, counted from 0, or by a fraction of the depth; `gen.model.layer_number` gives the number."""

EarlierLayer: TypeAlias = Annotated[int, Field(ge=0, le=MOST, strict=True)] | Annotated[float, Field(ge=0, lt=1)]
"""A `Layer` that, as a fraction, lies before the end of the decoder."""

LayerRange: TypeAlias = Annotated[
    tuple[Layer, Layer],
    Field(description="layers, the second excluded: numbers counted from 0, or fractions of the depth"),
]
"""A half-open range of layers, as `AttentionEdit` and `HiddenEdit` take it."""

LayerOutputs: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MOST, strict=True)] | Annotated[float, Field(gt=0, le=1)], ...],
    Field(min_length=1, description="layers read: numbers counted from 1, or fractions of the depth"),
]
"""Outputs of one layer or more, as `Readout` takes them."""
