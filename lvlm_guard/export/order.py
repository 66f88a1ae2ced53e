"""What every export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard import loading
from lvlm_guard.host.stack import Stack


@dataclass(frozen=True)
class ExportOrder:
    """What is exported, and where it goes.

    Args:
        model: As `lvlm_guard.loading.load` takes it.
        stack: The strategies.
        folder: Where the export goes.
        device: As above.
        dtype: As above; weights that are changed are stored in it.
        force: Whether an export that is there is replaced.
    """

    model: str
    stack: Stack
    folder: Path
    device: str | None = None
    dtype: str = "auto"
    force: bool = False

    def load(self) -> tuple[Any, Any]:
        """Return the model and its processor.

        Raises:
            InputError: They cannot be loaded.
        """
        return loading.load(self.model, self.device, self.dtype)
