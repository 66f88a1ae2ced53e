"""A model spread over devices that this machine lacks: tensors on the CPU that say they lie elsewhere.

Where torch would refuse tensors of two devices, so do these; a strategy or a core that forgets to move something fails here as it
would on two GPUs. Copies between devices cost nothing, so this tells nothing about speed.
"""

from __future__ import annotations

import importlib.util
import unittest
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import Self

from lvlm_guard import anatomy

KIND = "lazy"
"""A kind of device whose guards every build of torch has, and whose memory none touches."""
SHORT = 3
NO_AUTOCAST = "unknown device type for autocast", "unsupported scalarType"
FIRST, SECOND = torch.device(KIND, 0), torch.device(KIND, 1)


class DevicesApart(RuntimeError):
    """Tensors of two devices met in one operator."""


_aten = torch.ops.aten
_MOVES = (_aten._to_copy.default, _aten.copy_.default)  # noqa: SLF001 - the name torch gives the operator
_READ = (_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.masked_select.default)  # noqa: SLF001 - as above
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


class Elsewhere(Tensor):
    """A tensor on the CPU that says it lies on another device."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[Self], held: Tensor, device: torch.device) -> Self:
        """Wrap what is really on the CPU."""
        made: Self = Tensor._make_wrapper_subclass(  # noqa: SLF001 - torch's door for this
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """The values, and where they say they are."""
        return f"{self.held!r} on {self.device}"

    def tolist(self) -> Any:
        """Plain numbers."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operator where all its tensors lie."""
        return _run(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Sends what is created on a device of this kind through the same door, and writes down what would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.waited.append(str(func))
        return _run(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """Sees to tensors of Python values, which torch makes below every other door."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is Tensor.new_tensor:
            options = {"device": args[0].device, **options}
        lists = func is torch.tensor and isinstance(args[0], list | tuple)
        return func(*(tree_map(_behind, args) if lists else args), **options)


@contextmanager
def pretended() -> Iterator[list[str]]:
    """Let tensors be made on and moved to `FIRST` and `SECOND`; yields the operators that waited for a device so far.

    Raises:
        SkipTest: Something asked for autocast there, as older transformers do in every forward; torch has none for this kind.
    """
    lifted = torch._C._only_lift_cpu_tensors()  # noqa: SLF001 - so that what is made of Python values is moved, not made, there
    torch._C._set_only_lift_cpu_tensors(True)  # noqa: SLF001, FBT003 - as above
    try:
        with _Pretending() as mode, _Making():
            yield mode.waited
    except RuntimeError as problem:
        if any(words in str(problem) for words in NO_AUTOCAST):
            raise unittest.SkipTest(f"Pretended devices have no autocast, which was asked for: {problem}") from problem
        raise
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)  # noqa: SLF001 - as above


@contextmanager
def two(model: nn.Module, whose: str) -> Iterator[list[str]]:
    """A model spread over two devices, and a failure where something was not brought to where a layer is.

    Yields what waited for a device, as `pretended` does.

    Args:
        model: It stays spread, so take one that nobody else uses.
        whose: What the failure is put down to.

    Raises:
        SkipTest: accelerate, which spreads models, is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise unittest.SkipTest("accelerate, which spreads models over devices, is not installed.")
    with pretended() as waited:
        spread(model)
        try:
            yield waited
        except DevicesApart as problem:
            raise AssertionError(f"{whose}: {problem} Bring what is kept to the device of what it meets.") from problem


def moved(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs on the first device."""
    return {name: value.to(FIRST) for name, value in inputs.items()}


def waits_per_token(waited: Sequence[str], generate: Callable[[int], Any]) -> list[str]:
    """What each further token waits for: operators in a generation of two tokens more, counted down to one.

    Args:
        waited: What `two` yields.
        generate: Generates so many tokens, no fewer.
    """
    counts = []
    for tokens in (SHORT, SHORT + 2):
        before = len(waited)
        generate(tokens)
        counts.append(Counter(waited[before:]))
    more = counts[1] - counts[0]
    return [name for name, count in more.items() for _ in range(count // 2)]


@contextmanager
def no_default(whose: str) -> Iterator[None]:
    """A default device that holds no numbers, and a failure where something was made there.

    Args:
        whose: What the failure is put down to.
    """
    with torch.device("meta"):
        try:
            yield
        except RuntimeError as problem:
            if "meta" not in str(problem):
                raise
            raise AssertionError(f"{whose}: {problem} Say on which device a tensor is made.") from problem


def spread(model: nn.Module) -> None:
    """Put the later half of the decoder's layers, the final norm and an untied head on the second device, by accelerate."""
    from accelerate import dispatch_model  # noqa: PLC0415 - an optional package

    layers = anatomy.decoder_layers(model)
    behind = [anatomy.final_norm(model)]
    if not anatomy.ties_embeddings(model):
        behind.append(model.get_output_embeddings())  # type: ignore[operator]
    dispatch_model(model, dict(_placed(model, "", layers, behind)), force_hooks=True)


def _placed(module: nn.Module, prefix: str, layers: nn.ModuleList, behind: Container[Any]) -> Iterator[tuple[str, str]]:
    for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
        yield prefix + name, str(FIRST)
    for name, child in module.named_children():
        if child is layers:
            for index in range(len(layers)):
                yield f"{prefix}{name}.{index}", str(FIRST if index < len(layers) // 2 else SECOND)
        elif any(part is layers for part in child.modules()):
            yield from _placed(child, f"{prefix}{name}.", layers, behind)
        else:
            yield prefix + name, str(SECOND if child in behind else FIRST)


def _run(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on the tensors behind, and wrap what it gives for the device it would lie on."""
    wrapped = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Elsewhere)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not wrapped and (asked is None or asked.type != KIND):
        return func(*args, **kwargs)
    here = _device(func, args, kwargs, asked)
    options = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    result = func(*tree_map(_behind, args), **tree_map(_behind, options))
    known = {id(one.held): one for one in wrapped}  # what works in place gives back what it was given
    return tree_map(lambda one: _wrapped(one, here, known), result)


def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the host has to know a number that is on a device: to read it, or to shape a result."""
    leaves = tree_leaves((args, kwargs))
    if not any(isinstance(one, Elsewhere) for one in leaves):
        return False
    if func in _INDEXED:
        return any(one.dtype == torch.bool for one in tree_leaves(args[1]) if isinstance(one, Tensor))
    home = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    return func in _READ or (func is _MOVES[0] and home)


def _behind(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _wrapped(value: Any, here: torch.device, known: Mapping[int, Elsewhere]) -> Any:
    if not isinstance(value, Tensor) or here.type != KIND:
        return value
    return known[id(value)] if id(value) in known else Elsewhere(value, here)


def _device(func: Any, args: Any, kwargs: Mapping[str, Any], asked: torch.device | None) -> torch.device:
    """Where the result lies: where it was asked for, else where all tensors lie.

    Raises:
        DevicesApart: They do not.
    """
    if func in _MOVES:
        return asked if asked is not None else args[0].device
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    indices = tree_leaves(args[1]) if func in _INDEXED else []
    bound = [one for one in tensors if one.ndim or one.device.type == KIND]
    found = {one.device for one in bound if not (one.device.type == "cpu" and any(one is index for index in indices))}
    if len(found) > 1:
        raise DevicesApart(f"{func} met tensors on {' and '.join(sorted(map(str, found)))}.")
    return asked if asked is not None else found.pop()
