"""What a stack does to hidden states where that is the same for every request: named edits with their vectors, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.generation import create_generation
from lvlm_guard.call.plan import Plan, build_plan
from lvlm_guard.errors import StrategyRefused
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.requests import Request
from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout, layer_range
from lvlm_guard.strategy.fingerprints import digest_image_side, digest_weights
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hidden_operations import Project, Shift, Turn, find_vectors
from lvlm_guard.strategy.prompt import PromptStates

INCONSTANT_HOOKS: Mapping[str, str] = {
    "edit_inputs": "edits prompts or pictures",
    "search": "has a decoding loop of its own",
    "terms": "adds terms to the logits",
    "observe": "looks at the logits of every step",
    "finish": "looks at complete answers",
}
"""Hooks whose work is no constant edit of hidden states, with what they do."""
INCONSTANT_EDITS: Mapping[type, str] = {
    AttentionEdit: "edits attention",
    AttentionCapture: "looks at attention",
    Readout: "reads out inner layers",
}
POSITIONS = 3
"""Of the random states that functions of edits are given."""


@dataclass(frozen=True, eq=False)
class ConstantEdit:
    """One edit in one layer, with its vectors.

    Args:
        strategy: Name of the strategy.
        number: Which of the edits of its strategy it is, counted from 0.
        site: As in `HiddenEdit`.
        tower: As in `HiddenEdit`.
        layer: Index of the layer.
        operation: With a tensor: `[hidden]`, or `[k, hidden]` of a `Project`, in fp32 on the CPU.
    """

    strategy: str
    number: int
    site: str
    tower: Literal["decoder", "vision"]
    layer: int
    operation: Turn | Project | Shift

    @property
    def vectors(self) -> Tensor:
        """Its vectors, `[hidden]` or `[k, hidden]`."""
        vectors = find_vectors(self.operation)
        assert isinstance(vectors, Tensor)
        return vectors


@torch.no_grad()
def resolve_edits(model: Any, processor: Any, stack: Stack, prompts: Sequence[Mapping[str, Any]]) -> list[ConstantEdit]:
    """Return what a stack edits, in the order in which it does.

    Args:
        model: The model, which is not run.
        processor: Its processor.
        stack: The strategies.
        prompts: Model inputs of two requests or more; what differs between them is not constant.

    Raises:
        StrategyRefused: A strategy does something else, or something that depends on the request.
        Refused: As `Guard.generate` refuses the strategies.
    """
    _refuse_hooks(StrategyCalls(stack.strategies))
    started = [_start(model, processor, stack, prompt) for prompt in prompts]
    gens, plan = [gen for gen, _ in started], started[0][1]
    _refuse_plan(plan)
    return [
        constant
        for name, edits in plan.edits.items()
        for number, edit in enumerate(edits)
        if isinstance(edit, HiddenEdit)
        for constant in _resolve(_NumberedEdit(name, number, edit), model, gens)
    ]


def _refuse_hooks(strategies: StrategyCalls) -> None:
    for hook, deed in INCONSTANT_HOOKS.items():
        for name in strategies.active(hook):
            raise inconstant(name, deed)


def _start(model: Any, processor: Any, stack: Stack, prompt: Mapping[str, Any]) -> tuple[Generation, Plan]:
    """Let the strategies prepare for a request, and return what they ask for."""
    gen = create_generation(Request(dict(prompt), {}, model.config, processor))
    depth, heads = anatomy.depth_and_heads(model)
    gen.model = dataclasses.replace(
        gen.model,
        depth=depth,
        heads=heads,
        tied_embeddings=anatomy.ties_embeddings(model),
        digest_weights=functools.partial(digest_weights, model),
        digest_image_side=functools.partial(digest_image_side, model),
    )
    for strategy in stack:
        alone = StrategyCalls([strategy])
        gen.services.run_prompt = _refuse_to_run(alone.names[0])
        alone.call("start", gen)
    gen.services.run_prompt = _refuse_to_run(", ".join(stack.names))
    return gen, build_plan(functools.partial(StrategyCalls(stack.strategies).call, gen=gen))


def _refuse_to_run(name: str) -> Callable[[Branch | None], PromptStates]:
    def refuse(_: Branch | None) -> PromptStates:
        raise inconstant(name, "runs every prompt for its hidden states")

    return refuse


def _refuse_plan(plan: Plan) -> None:
    for name, keys in plan.branch_keys.items():
        if keys:
            raise inconstant(name, "runs branches beside the prompt")
    for name, edits in plan.edits.items():
        for edit in edits:
            if not isinstance(edit, HiddenEdit):
                raise inconstant(name, INCONSTANT_EDITS[type(edit)])
            if deed := _find_inconstancy(edit):
                raise inconstant(name, deed)


def _find_inconstancy(edit: HiddenEdit) -> str | None:
    """Return why an edit is none that every position gets; None where it is one."""
    if not isinstance(edit.edit, (Turn, Project, Shift)):
        return "edits hidden states by a function, which may do anything with them"
    is_everywhere = edit.positions == "all" and (edit.when == "both" or edit.tower == "vision")
    return None if is_everywhere else "edits some positions alone"


@dataclass(frozen=True, eq=False)
class _NumberedEdit:
    strategy: str
    number: int
    edit: HiddenEdit


def _resolve(numbered: _NumberedEdit, model: Any, gens: Sequence[Generation]) -> list[ConstantEdit]:
    """Return an edit in each of its layers."""
    edit, tower = numbered.edit, numbered.edit.tower
    width = _find_width(model, tower)
    depth = len(anatomy.vision_layers(model)) if tower == "vision" else gens[0].model.depth
    layers = range(1) if edit.site == "embedding" else layer_range(edit.layers, depth)
    return [
        ConstantEdit(numbered.strategy, numbered.number, edit.site, tower, layer, _freeze(numbered, gens, layer, width))
        for layer in layers
    ]


def _find_width(model: Any, tower: str) -> int:
    """Return the width of a tower's states."""
    if tower == "decoder":
        return int(model.get_input_embeddings().weight.shape[-1])
    config = model.config.vision_config
    return int(next(getattr(config, name) for name in ("embed_dim", "hidden_size") if hasattr(config, name)))


def _freeze(numbered: _NumberedEdit, gens: Sequence[Generation], layer: int, width: int) -> Turn | Project | Shift:
    """Return the operation of an edit in a layer with a tensor of its own, the same for all requests."""
    operation: Any = numbered.edit.edit
    states = [
        torch.randn(1, POSITIONS, width, generator=torch.Generator().manual_seed(seed)) for seed in range(len(gens))
    ]
    by_request = [
        _read_vectors(operation, hidden, _LayerAlone(numbered.strategy, gen, layer, hidden.device))
        for gen, hidden in zip(gens, states, strict=True)
    ]
    if any(not torch.equal(by_request[0], vectors) for vectors in by_request[1:]):
        raise inconstant(numbered.strategy, "has other vectors for other requests")
    shape = by_request[0].shape[-2:] if isinstance(operation, Project) else by_request[0].shape[-1:]
    if by_request[0].numel() != shape.numel():
        raise inconstant(numbered.strategy, "has other vectors for other rows or positions")
    vectors = by_request[0].reshape(shape).float().cpu()
    name = next(field.name for field in dataclasses.fields(operation))
    frozen: Turn | Project | Shift = dataclasses.replace(operation, **{name: vectors})
    return frozen


def _read_vectors(operation: Any, hidden: Tensor, view: _LayerAlone) -> Tensor:
    vectors: Any = find_vectors(operation)
    if isinstance(vectors, Tensor):
        return vectors
    vectors = vectors(hidden, view)
    if not isinstance(vectors, Tensor):
        raise inconstant(view.strategy, "gives no tensor of vectors")
    return vectors


@dataclass(frozen=True, eq=False)
class _LayerAlone:
    """A `View` of a layer that no request has run."""

    strategy: str
    gen: Generation
    layer: int
    device: torch.device

    def __getattr__(self, name: str) -> Any:
        raise inconstant(self.strategy, f"looks at a request ({name})")


def inconstant(name: str, deed: str) -> StrategyRefused:
    """Return the refusal of a strategy that does more than a constant edit of hidden states."""
    return StrategyRefused(
        f"{name!r} cannot be exported: it {deed}, and files hold only edits of hidden states that are the same for every request. "
        "Leave it out of the stack, or run it with Guard(model, processor)."
    )
