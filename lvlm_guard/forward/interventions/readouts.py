"""Next-token logits of inner layers: captured hidden states through norm and head in one product."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import register
from lvlm_guard.forward.interventions.head_paths import HeadPath, find_path, observe_path, sample_tail
from lvlm_guard.forward.interventions.running import RunningForward, running_forward
from lvlm_guard.forward.interventions.states import align_or_refuse, first_input, first_tensor
from lvlm_guard.protocols import Model
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import Readout, readout_layers

TOLERANCE = 1e-3
FORBIDDEN = torch.finfo(torch.float16).min
"""The lowest number of the narrowest dtype; logits are nowhere near it."""
_behind_head: weakref.WeakKeyDictionary[Any, Scaling] = weakref.WeakKeyDictionary()
"""What each model that was checked does to its logits behind the head."""


FACTORS = ("logit_scale", "output_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping",)
"""What configs call what is done to logits behind the head."""


class Scaling(NamedTuple):
    """What a model does to its logits behind the head.

    Args:
        factor: What they are multiplied by.
        cap: What they are softly capped at, if anything.
        width: How many of them the model returns; None where not known.
    """

    factor: float = 1.0
    cap: float | None = None
    width: int | None = None

    def agrees(self, scaling: Scaling) -> bool:
        """Whether another does the same, but for rounding."""
        return math.isclose(self.factor, scaling.factor, rel_tol=TOLERANCE) and self[1:] == scaling[1:]

    def apply(self, logits: Tensor) -> Tensor:
        """Scale, cap and cut logits."""
        logits = logits[..., : self.width]
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class Lens:
    """Reads hidden states as next-token logits, as the model itself reads its last layer.

    Args:
        module: The module that decodes.
        layers: Layer outputs asked for, 1 to the depth; 0 is the embeddings.

    Raises:
        ModelRefused: Head or final norm cannot be found.
    """

    def __init__(self, module: Model, layers: frozenset[int]) -> None:
        self._module = module
        self.layers = layers
        path = find_path(module)
        if path is None:
            raise ModelRefused(
                f"{type(module).__name__} shows no head, or does more between its last layer and its head than hand states on from "
                "one part to the next, so layers cannot be read out."
            )
        self.path: HeadPath = path
        self._supposed: Scaling | None = None

    @property
    def head(self) -> nn.Module:
        """What makes logits of states."""
        return self.path.head

    def list_captures(self, depth: int) -> list[int]:
        """Outputs to capture: those asked for, and the last until the lens was checked on it."""
        return sorted(self.layers if self.is_checked else self.layers | {depth})

    @property
    def is_checked(self) -> bool:
        """Whether the last layer of this model, read by a lens, gave the model's own logits."""
        return self._module in _behind_head

    def logits(self, hidden: Sequence[Tensor], *, final_norm: bool) -> Tensor:
        """Logits `[layers, rows, positions, vocab]` of hidden states `[rows, positions, hidden]`, one head product."""
        return self.scale(self._read(hidden, final_norm=final_norm))

    def stack(self, hidden: Sequence[Tensor], *, final_norm: bool) -> Tensor:
        """What the head reads, `[layers, rows, positions, hidden]`, where the last of them lies."""
        joined = torch.cat([state.to(hidden[-1].device) for state in hidden])
        return self.path.prepare(joined, final_norm=final_norm).unflatten(0, (len(hidden), -1))

    def check(self, last: Tensor, logits: Tensor) -> None:
        """Refuse a model whose last layer, read this way, differs from its logits; checked once for each model.

        Of what its config states to be done behind the head, that is taken which gives its logits: not every model does
        what it states. Else one factor for all of them is looked for. Infinities must be in the same places; NaN says
        nothing, and is an error of its own once the forward has run.

        Raises:
            ModelRefused: The lens of the last layer differs from the logits.
        """
        if bool(logits.isnan().any()):
            return
        error, scaling = self._try_paths(last, logits)
        if scaling is None:
            raise ModelRefused(
                f"Reading the last layer of {type(self._module).__name__} through norm and head differs from its "
                f"logits by {error:.3g} of their size, so inner layers cannot be read out."
            )
        _behind_head[self._module] = scaling

    @torch.no_grad()
    def suppose(self) -> None:
        """Try the lens on random tokens, for layers that are read before the first logits are there."""
        sample = None if self.is_checked else sample_tail(self._module)
        if sample is not None:
            _, self._supposed = self._try_paths(*sample)

    def _try_paths(self, last: Tensor, logits: Tensor) -> tuple[float, Scaling | None]:
        """Try the path at hand, then the one that is observed; how far the last layer is off, and its scaling where it is not."""
        error, scaling = self._try_path(last, logits)
        if scaling is None and (observed := observe_path(self._module)) is not None:
            named, self.path = self.path, observed
            error, scaling = self._try_path(last, logits)
            self.path = named if scaling is None else observed
        return error, scaling

    def _try_path(self, last: Tensor, logits: Tensor) -> tuple[float, Scaling | None]:
        read, width = self._read([last], final_norm=True)[0].to(logits.device).float(), logits.shape[-1]
        if read.shape[:-1] != logits.shape[:-1]:
            return math.inf, None
        stated = [scaling._replace(width=width) for scaling in self._list_scalings()]
        stated.append(Scaling(_fit_factor(read[..., :width], logits.float()), width=width))
        errors = [_relative_error(scaling.apply(read), logits.float()) for scaling in stated]
        best = min(range(len(stated)), key=lambda index: errors[index])
        is_exact = errors[best] <= TOLERANCE * (1 if logits.dtype == torch.float32 else 30)
        return errors[best], stated[best] if is_exact else None

    def scale(self, logits: Tensor) -> Tensor:
        """Scale and cap logits as the model does behind the head; before it was checked, as its config states."""
        return self.scaling.apply(logits)

    @property
    def scaling(self) -> Scaling:
        """What the model does behind its head, as far as is known."""
        return _behind_head.get(self._module) or self._supposed or self._list_scalings()[0]

    def _read(self, hidden: Sequence[Tensor], *, final_norm: bool) -> Tensor:
        logits: Tensor = self.head(self.stack(hidden, final_norm=final_norm))
        return logits

    def _list_scalings(self) -> list[Scaling]:
        """What the model may do behind the head: all that its config states first, then parts of it."""
        config: Any = self._module.config.get_text_config(decoder=True)
        factors, divisors, caps = (
            [*(float(value) for name in names if (value := getattr(config, name, None))), None]
            for names in (FACTORS, DIVISORS, CAPS)
        )
        return [
            Scaling((factor or 1.0) / (divisor or 1.0), cap)
            for cap, factor, divisor in itertools.product(caps, factors, divisors)
        ]


def _fit_factor(read: Tensor, logits: Tensor) -> float:
    """What logits were multiplied by as a whole, if that is all that was done to them."""
    counts = logits.isfinite() & (logits > FORBIDDEN) & read.isfinite()
    read, logits = read[counts].double(), logits[counts].double()
    return float((read * logits).sum() / read.square().sum().clamp_min(torch.finfo(torch.float64).tiny))


def _relative_error(read: Tensor, logits: Tensor) -> float:
    """Greatest difference as a share of the greatest finite logit; of equal infinities 0, and of forbidden tokens.

    Models forbid tokens by the lowest number that their dtype has.
    """
    forbidden = logits.isfinite() & (logits <= FORBIDDEN)
    difference = torch.where((read == logits) | forbidden, 0.0, read - logits).abs().max()
    size = logits.masked_fill(logits.isinf() | forbidden, 0.0).abs().max()
    return float(difference / size.clamp_min(1e-6))


class ReadoutHooks:
    """The hooks that capture what layers return, and let the model's head read them along with its last layer.

    Args:
        owner: The interventions of the call; forwards of other calls are left alone.
        lens: Reads hidden states as logits.
        layers: The decoder's layers.
        readouts: What the strategies asked for.
    """

    def __init__(self, owner: object, lens: Lens, layers: nn.ModuleList, readouts: Sequence[Readout]) -> None:
        self._owner = owner
        self._lens = lens
        self._layers = layers
        self._readouts = readouts
        self._online = frozenset(
            index for readout in readouts if readout.online for index in readout_layers(readout, len(layers))
        )
        if self._online:
            lens.suppose()
        self._joined = list(self._missing({(index, True) for index in self._online}))

    def register(self) -> None:
        """Register every hook, for the owner to remove."""
        for index in self._lens.list_captures(len(self._layers)):
            if index:
                register(self._layers[index - 1], self._owner, self._capture(index))
            else:
                register(self._layers[0], self._owner, self._capture_embeddings(), before=True, with_kwargs=True)
        register(self._lens.head, self._owner, self._join_head, before=True)
        register(self._lens.head, self._owner, self._split_head)

    def read(self, running: RunningForward, logits: Tensor, keep: int) -> dict[tuple[int, bool], Tensor]:
        """Logits `[rows, keep, vocab]` of every layer asked for, by (layer, whether normed), after main's forward."""
        captures, depth = running.captures, len(self._layers)
        if missed := sorted(self._lens.layers - captures.hidden.keys()):
            raise ModelRefused(
                f"A forward of this model did not run what reads out layers {missed}: leave these layers out."
            )
        if depth in captures.hidden and not self._lens.is_checked:
            supposed = self._lens.path, self._lens.scaling._replace(width=logits.shape[-1])
            self._lens.check(running.captured(depth, MAIN)[:, -keep:], logits[:, -keep:])
            is_as_supposed = self._lens.path == supposed[0] and self._lens.scaling.agrees(supposed[1])
            if captures.online and not is_as_supposed:
                raise ModelRefused(
                    "This model makes its logits otherwise than its config and the names of its parts say, which was not known "
                    "while its layers were read online. It is known now: repeat the call."
                )
            if self._lens.path is not supposed[0]:
                captures.beside_head.clear()
        read = {key: self._lens.scale(product) for key, product in captures.beside_head.items()}
        read.update({(index, True): logits_of_layer for index, logits_of_layer in captures.online.items()})
        for normed, layers in self._missing(read):
            states = [running.captured(index, MAIN)[:, -keep:] for index in layers]
            stacked = self._lens.logits(states, final_norm=normed)
            read.update({(index, normed): layer for index, layer in zip(layers, stacked, strict=True)})
        return {key: layer[:, -keep:].to(logits.device) for key, layer in read.items()}

    def _missing(self, read: Container[tuple[int, bool]]) -> Iterator[tuple[bool, list[int]]]:
        """Layers asked for that were not read yet, apart with and without the final norm."""
        for normed in (False, True):
            readouts = [readout for readout in self._readouts if readout.final_norm is normed]
            indices = {index for readout in readouts for index in readout_layers(readout, len(self._layers))}
            layers = sorted(index for index in indices if (index, normed) not in read)
            if layers:
                yield normed, layers

    def _capture(self, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            if (running := self._running()) is None:
                return
            if layer in running.captures.hidden:
                raise ModelRefused(
                    f"Layer {layer} of this model runs more than once in a forward, so it cannot be read out."
                )
            states = align_or_refuse(first_tensor(output), running.layout, f"What gives readout {layer}")
            running.captures.hidden[layer] = states
            if layer in self._online:
                captured = [running.captured(layer, MAIN)]
                running.captures.online[layer] = self._lens.logits(captured, final_norm=True)[0]

        return hook

    def _capture_embeddings(self) -> Callable[..., None]:
        capture = self._capture(0)
        return lambda part, args, kwargs: capture(part, args, first_input(args, kwargs))

    def _join_head(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Append the states of inner layers to the head's input as further rows.

        The head is the largest weight of a small model: reading inner layers in the same product reads it once, not
        twice. `_split_head` gives the model its own rows back.
        """
        running, states = self._running(), args[0] if args else None
        if running is None or not isinstance(states, Tensor) or states.ndim != 3:  # noqa: PLR2004
            return None  # the lens itself asks with four dimensions
        captures = running.captures
        complete = self._lens.layers <= captures.hidden.keys()
        if captures.head_rows or states.shape[1] != running.layout.predicting or not complete or not self._joined:
            return None
        inner = [
            self._lens.stack([running.captured(index, MAIN) for index in layers], final_norm=normed).flatten(0, 1)
            for normed, layers in self._joined
        ]
        if any(layer.shape[1:] != states.shape[1:] for layer in inner):
            return None  # the parts that are named are not all that runs before the head
        captures.head_rows = states.shape[0]
        return (torch.cat([states, *(layer.to(states) for layer in inner)]), *args[1:])

    def _split_head(self, _: nn.Module, __: Any, logits: Tensor) -> Any:
        """Give the model its own rows back and keep those of inner layers, as the head left them."""
        running = self._running()
        if running is None or not running.captures.head_rows or running.captures.beside_head:
            return None
        rows = running.captures.head_rows
        keys = [(index, normed) for normed, layers in self._joined for index in layers]
        inner = logits[rows:].unflatten(0, (len(keys), -1))
        running.captures.beside_head.update(zip(keys, inner, strict=True))
        return logits[:rows]

    def _running(self) -> RunningForward | None:
        """The running forward, if it belongs to this call, holds main's rows and predicts something."""
        running = running_forward()
        if running is None or running.owner is not self._owner or MAIN not in running.layout.prompts:
            return None
        return running if running.layout.predicting else None
