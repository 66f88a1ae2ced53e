"""Linear edits of what a block returns, as edits of the last matrix inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused, StrategyRefused
from lvlm_guard.export.constant_edits import ConstantEdit
from lvlm_guard.forward.interventions.sites import find_site
from lvlm_guard.strategy.hidden_operations import Project, Shift

BLOCKS = ("mlp", "attention")


@dataclass(frozen=True, eq=False)
class Fold:
    """An edit and the matrix that takes it in.

    Args:
        edit: The edit.
        linear: The module whose output is that of the block.
        name: Its name in the model.
        factor: What the layer multiplies the block's output by before it is edited and added.
    """

    edit: ConstantEdit
    linear: nn.Linear
    name: str
    factor: float

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What of the module is changed, by its name in the model."""
        changed = {"weight": self.linear.weight} if isinstance(self.edit.operation, Project) else {}
        bias = {} if self.linear.bias is None else {"bias": self.linear.bias}
        return {f"{self.name}.{name}": value for name, value in {**changed, **bias}.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Change the module so that it returns what the edit would have made of its output; computed in fp64."""
        operation = self.edit.operation
        bias = None if self.linear.bias is None else self.linear.bias.double()
        if isinstance(operation, Project):
            directions = self.edit.vectors.to(self.linear.weight.device).double()
            weight = self.linear.weight.double()
            self.linear.weight.copy_(weight - operation.strength * directions.mT @ (directions @ weight))
            if bias is not None:
                bias = bias - operation.strength * directions.mT @ (directions @ bias)
        elif isinstance(operation, Shift):
            assert bias is not None
            bias = bias + operation.strength / self.factor * self.edit.vectors.to(bias)
        if bias is not None:
            self.linear.bias.copy_(bias)


def plan_folds(model: Any, edits: Sequence[ConstantEdit], prompt: Mapping[str, Any]) -> list[Fold]:
    """Return what takes in each edit; nothing is changed.

    Args:
        model: The model.
        edits: In the order in which they are applied.
        prompt: Model inputs with a picture, which are run once.

    Raises:
        StrategyRefused: An edit is no linear one of what a block returns.
        ModelRefused: A block does not end in a matrix of its own.
    """
    for edit in edits:
        _refuse_unfoldable(edit)
    blocks = {(edit.tower, edit.layer, edit.site): _find_block(model, edit) for edit in edits}
    ends = _observe_ends(model, {block for block, _ in blocks.values()}, prompt)
    names = {module: name for name, module in model.named_modules()}
    uses = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    folds = []
    for edit in edits:
        block, factor = blocks[edit.tower, edit.layer, edit.site]
        linear = _check_end(edit, ends.get(block), uses)
        folds.append(Fold(edit, linear, names[linear], factor))
    return folds


def _refuse_unfoldable(edit: ConstantEdit) -> None:
    if not isinstance(edit.operation, (Project, Shift)):
        raise StrategyRefused(
            f"{edit.strategy!r} cannot be baked into weights: it turns hidden states and keeps their norms, which no matrix does. "
            "Write its vectors (--to vectors), or run it with Guard(model, processor)."
        )
    if edit.site not in BLOCKS:
        raise StrategyRefused(
            f"{edit.strategy!r} cannot be baked into weights: it edits the {edit.site} states, which no single matrix returns. "
            "Edits of what the feed-forward or the attention returns can be."
        )


def _find_block(model: Any, edit: ConstantEdit) -> tuple[nn.Module, float]:
    """Return the block whose output is edited, and what the layer multiplies that by."""
    if edit.tower == "vision":
        return anatomy.layer_part(anatomy.vision_layers(model)[edit.layer], edit.site), 1.0
    site = find_site(model, anatomy.decoder_layers(model)[edit.layer], edit.site)
    if site.part is not site.block:
        raise ModelRefused(
            f"What {edit.strategy!r} edits in layer {edit.layer} of {type(model).__name__} lies behind {type(site.part).__name__}, so "
            "no matrix can take it in. Run the stack with Guard(model, processor)."
        )
    return site.block, site.factor


@dataclass
class _Observed:
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    ends: dict[nn.Module, nn.Module | None] = field(default_factory=dict)


@torch.no_grad()
def _observe_ends(model: Any, blocks: set[nn.Module], prompt: Mapping[str, Any]) -> dict[nn.Module, nn.Module | None]:
    """Run the model once; return for each block that ran the module inside it whose output it returns as it is."""
    observed = _Observed()
    with _observe(blocks, observed):
        model(**prompt)
    return observed.ends


@contextmanager
def _observe(blocks: set[nn.Module], observed: _Observed) -> Iterator[None]:
    def note_end(block: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        inside = [part for part in block.modules() if observed.outputs.get(part) is first and not list(part.children())]
        observed.ends[block] = next((part for part in inside if not isinstance(part, nn.Dropout)), None)

    def note_output(part: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            observed.outputs[part] = output

    with ExitStack() as undo:
        for block in blocks:
            for part in block.modules():
                if part is not block:
                    undo.callback(part.register_forward_hook(note_output).remove)
            undo.callback(block.register_forward_hook(note_end).remove)
        yield


def _check_end(edit: ConstantEdit, end: nn.Module | None, uses: Counter[int]) -> nn.Linear:
    """Return what a block ends in, if that can take the edit in."""
    place = f"the {edit.site} block of {edit.tower} layer {edit.layer}"
    if type(end) is not nn.Linear or not end.weight.is_floating_point() or end.weight.is_meta:
        raise ModelRefused(
            f"{edit.strategy!r} cannot be baked into weights: {place} ends in no plain matrix ({type(end).__name__}). Load the model "
            "unquantised and with adapters merged, or run the stack with Guard(model, processor)."
        )
    if any(uses[id(value)] > 1 for value in end.parameters()):
        raise ModelRefused(
            f"{edit.strategy!r} cannot be baked into weights: the matrix of {place} is used elsewhere as well."
        )
    if isinstance(edit.operation, Shift) and end.bias is None:
        raise StrategyRefused(
            f"{edit.strategy!r} cannot be baked into weights: it adds a vector, and {place} has no bias to add it to. Write its vectors "
            "(--to vectors), or run it with Guard(model, processor)."
        )
    return end
