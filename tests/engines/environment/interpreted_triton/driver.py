"""The driver of the back end: a device of the kind `cpu`."""

from typing import Any, NoReturn

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    """Says that the device is a CPU; launches nothing."""

    @classmethod
    def is_active(cls) -> bool:
        """Always."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the type as it is."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """Return the CPU."""
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    def get_benchmarker(self, *_: Any) -> NoReturn:
        """Refuse to measure."""
        raise RuntimeError("Nothing is measured in Triton's interpreter.")
