"""Defines operators of torchvision that its wheel misses on a CPU build of torch, right before torchvision is imported.

A line `import torchvision_operators` in a `.pth` file of the environment lets every interpreter of it do so.
"""

from __future__ import annotations

import sys
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DefineBeforeImport:
    """A finder that finds nothing, and defines the operators when torchvision is looked for."""

    libraries: tuple[Any, ...] = ()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Define what is missing; the import goes on by other finders."""
        if name != "torchvision" or self.libraries:
            return
        import torch  # noqa: PLC0415 - slow to import, and not everywhere

        library = torch.library.Library("torchvision", "DEF")
        self.libraries = (library,)
        for schema in SCHEMAS:
            library.define(schema)


sys.meta_path.insert(0, DefineBeforeImport())
