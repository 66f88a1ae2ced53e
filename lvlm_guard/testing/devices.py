"""A model spread over devices that this machine lacks: tensors on the CPU that say they lie elsewhere.

They refuse to meet across devices as torch's do, so a strategy or a core that forgets to move a tensor fails here as it would on
two GPUs. Copies between devices cost nothing, so speed is not measured.
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
from lvlm_guard.deprecation import moved_names

KIND = "lazy"
"""A kind of device whose guards every build of torch has, and whose memory no build touches."""
SHORT = 5
"""Tokens 6 and 7 are those at which the core itself reads nothing; it does at powers of two, and one token later."""
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

    content: Tensor

    @staticmethod
    def __new__(cls: type[Self], values: Tensor, device: torch.device) -> Self:
        """Wrap a tensor that is really on the CPU."""
        wrapper: Self = Tensor._make_wrapper_subclass(  # noqa: SLF001 - torch's door for this
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=device,
        )
        wrapper.content = values
        return wrapper

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Return the values, and the device that they name."""
        return f"{self.content!r} on {self.device}"

    def tolist(self) -> Any:
        """Return plain numbers."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operator where all its tensors lie."""
        return _run(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Send tensors created on a device of this kind through the same door, and note operators that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.waited.append(str(func))
        return _run(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """Handle tensors of Python values, which torch makes below every other door."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is Tensor.new_tensor:
            options = {"device": args[0].device, **options}
        lists = func is torch.tensor and isinstance(args[0], list | tuple)
        return func(*(tree_map(_unwrap, args) if lists else args), **options)


@contextmanager
def pretended() -> Iterator[list[str]]:
    """Let tensors be made on and moved to `FIRST` and `SECOND`; yield the operators that waited for a device so far.

    Raises:
        SkipTest: A forward uses autocast, as older transformers always do; torch has none for this kind.
    """
    lifted = torch._C._only_lift_cpu_tensors()  # noqa: SLF001 - so that tensors of Python values are moved there, not made there
    torch._C._set_only_lift_cpu_tensors(True)  # noqa: SLF001, FBT003 - as above
    try:
        with _Pretending() as mode, _Making():
            yield mode.waited
    except RuntimeError as problem:
        if any(words in str(problem) for words in NO_AUTOCAST):
            raise unittest.SkipTest(
                f"Pretended devices have no autocast, which this forward uses: {problem}"
            ) from problem
        raise
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)  # noqa: SLF001 - as above


@contextmanager
def two(model: nn.Module, name: str) -> Iterator[list[str]]:
    """Spread a model over two devices, and fail where a tensor was not moved to the device of a layer.

    Yields the operators that waited for a device, as `pretended` does.

    Args:
        model: It stays spread, so pass one that no other test uses.
        name: The strategy that the failure names.

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
            raise AssertionError(f"{name}: {problem} Move the tensor to the device of the one it meets.") from problem


def move(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move inputs to the first device."""
    return {name: value.to(FIRST) for name, value in inputs.items()}


def waits_per_token(waited: Sequence[str], generate: Callable[[int], Any]) -> list[str]:
    """Return the operators that each further token waits for: the difference of two generations, per token.

    Args:
        waited: The list that `two` yields.
        generate: Generates exactly that many tokens.
    """
    generate(2)  # what is tried once on a model is tried here
    counts = []
    for tokens in (SHORT, SHORT + 2):
        before = len(waited)
        generate(tokens)
        counts.append(Counter(waited[before:]))
    more = counts[1] - counts[0]
    return [name for name, count in more.items() for _ in range(count // 2)]


@contextmanager
def no_default(name: str) -> Iterator[None]:
    """Set a default device that holds no numbers, and fail where a tensor was made there.

    Args:
        name: The strategy that the failure names.
    """
    with torch.device("meta"):
        try:
            yield
        except RuntimeError as problem:
            if "meta" not in str(problem):
                raise
            raise AssertionError(f"{name}: {problem} State the device of a tensor where it is made.") from problem


def spread(model: nn.Module) -> None:
    """Put the later half of the decoder's layers, the final norm and an untied head on the second device, by accelerate."""
    from accelerate import dispatch_model  # noqa: PLC0415 - an optional package

    layers = anatomy.decoder_layers(model)
    last = [anatomy.final_norm(model)]
    if not anatomy.ties_embeddings(model):
        last.append(model.get_output_embeddings())  # type: ignore[operator]
    dispatch_model(model, dict(_place(model, "", layers, last)), force_hooks=True)


def _place(module: nn.Module, prefix: str, layers: nn.ModuleList, last: Container[Any]) -> Iterator[tuple[str, str]]:
    for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
        yield prefix + name, str(FIRST)
    for name, child in module.named_children():
        if child is layers:
            for index in range(len(layers)):
                yield f"{prefix}{name}.{index}", str(FIRST if index < len(layers) // 2 else SECOND)
        elif any(part is layers for part in child.modules()):
            yield from _place(child, f"{prefix}{name}.", layers, last)
        else:
            yield prefix + name, str(SECOND if child in last else FIRST)


def _run(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on the values, and wrap its result for the device that it would lie on."""
    wrapped = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
    requested = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not wrapped and (requested is None or requested.type != KIND):
        return func(*args, **kwargs)
    device = _find_device(func, args, kwargs, requested)
    options = {**kwargs, "device": torch.device("cpu")} if requested is not None else kwargs
    result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, options))
    wrappers = {id(leaf.content): leaf for leaf in wrapped}  # an operator in place returns its own argument
    return tree_map(lambda leaf: _wrap(leaf, device, wrappers), result)


def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the host needs a number that is on a device: to read it, or to shape a result."""
    leaves = tree_leaves((args, kwargs))
    if not any(isinstance(leaf, Elsewhere) for leaf in leaves):
        return False
    if func in _INDEXED:
        return any(leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor))
    home = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    return func in _READ or (func is _MOVES[0] and home)


def _unwrap(value: Any) -> Any:
    return value.content if isinstance(value, Elsewhere) else value


def _wrap(value: Any, device: torch.device, wrappers: Mapping[int, Elsewhere]) -> Any:
    if not isinstance(value, Tensor) or device.type != KIND:
        return value
    return wrappers[id(value)] if id(value) in wrappers else Elsewhere(value, device)


def _find_device(func: Any, args: Any, kwargs: Mapping[str, Any], requested: torch.device | None) -> torch.device:
    """Return the device of the result: the requested one, else that of all tensors.

    Raises:
        DevicesApart: The tensors lie on two devices.
    """
    if func in _MOVES:
        return requested if requested is not None else args[0].device
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    indices = tree_leaves(args[1]) if func in _INDEXED else []
    bound = [tensor for tensor in tensors if tensor.ndim or tensor.device.type == KIND]
    devices = {
        tensor.device
        for tensor in bound
        if not (tensor.device.type == "cpu" and any(tensor is index for index in indices))
    }
    if len(devices) > 1:
        raise DevicesApart(f"{func} met tensors on {' and '.join(sorted(map(str, devices)))}.")
    return requested if requested is not None else devices.pop()


__getattr__ = moved_names(__name__, {"moved": "lvlm_guard.testing.devices:move"})
