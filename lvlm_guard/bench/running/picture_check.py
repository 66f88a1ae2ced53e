"""Find missing and broken pictures before a run, and leave their items out where that is wanted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError

LISTED = 3
"""Pictures that a message names."""
STORED = 20
"""Pictures that a manifest names."""


@dataclass(frozen=True)
class LeftOut:
    """Items that are not put to any system because their pictures cannot be used.

    Args:
        items: How many.
        faults: What is wrong, by the name of the picture.
    """

    items: int
    faults: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest; all are counted, the first are named."""
        return {"pictures": len(self.faults), "items": self.items, "first": list(self.describe(STORED))}

    def describe(self, most: int) -> Sequence[str]:
        """Name the first pictures with what is wrong."""
        return [f"{name} ({fault})" for name, fault in list(self.faults.items())[:most]]


def find_faults(suite: Suite, data: Path | None, items: Sequence[Item]) -> LeftOut:
    """Look at every picture of some items once."""
    names = dict.fromkeys(item.image for item in items if item.image is not None)
    faults = {name: fault for name in names if (fault := _fault(suite, data, name)) is not None}
    return LeftOut(sum(item.image in faults for item in items), faults)


def _fault(suite: Suite, data: Path | None, name: str) -> str | None:
    if (find := getattr(suite, "picture_fault", None)) is not None:
        fault: str | None = find(data, name)
        return fault
    try:
        suite.picture(data, name)
    except (InputError, OSError) as error:
        return str(error)
    return None


def refuse(suite: str, left_out: LeftOut, pictures: int) -> InputError:
    """Build the error for pictures that cannot be used: how many, the first of them, and what to do."""
    kinds = Counter(re.split("[,;:]", fault)[0] for fault in left_out.faults.values())
    counts = "; ".join(f"{count} {kind}" for kind, count in kinds.most_common(LISTED))
    more = f" and {len(left_out.faults) - LISTED} more" if len(left_out.faults) > LISTED else ""
    return InputError(
        f"{suite}: {len(left_out.faults)} of {pictures} pictures cannot be used ({counts}): "
        f"{', '.join(left_out.describe(LISTED))}{more}. Get them, or leave their {left_out.items} items out: "
        "--missing-pictures skip."
    )
