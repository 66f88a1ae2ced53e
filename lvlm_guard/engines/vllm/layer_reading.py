"""Next-token logits of inner layers at the rows that a step samples; for models that run without compilation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.installations import hook_with_kwargs

TOLERANCE = 1e-3


class LayerReader:
    """Keeps what decoder layers put out at the last position of each request, and reads it as the model reads its last layer.

    Args:
        model: The model of a runner.
        find_rows: Returns the index of the last position of each request of the step, int64 `[requests]`.

    Attributes:
        depth: How many layers there are.
        layers_to_keep: Outputs to keep in the next forward, counted from 1, 0 for the embeddings; the last is kept with them.

    Raises:
        ModelRefused: The decoder's layers, its final norm or its head cannot be found.
    """

    def __init__(self, model: Any, find_rows: Callable[[], Tensor]) -> None:
        language: Any = getattr(model, "get_language_model", lambda: model)()
        self._layers = anatomy.decoder_layers(language)
        norm: Any = getattr(anatomy.decoder(language), "norm", None)
        head: Any = next((part for part in (language, model) if hasattr(part, "compute_logits")), None)
        if norm is None or head is None:
            raise ModelRefused(
                f"{type(language).__name__} shows no final norm or no head, so its layers cannot be read out."
            )
        self._norm = norm
        self.depth = len(self._layers)
        self._compute_logits: Callable[[Tensor], Tensor] = head.compute_logits
        self._find_rows = find_rows
        self._states: dict[int, Tensor] = {}
        self._is_checked = False
        self.layers_to_keep: Collection[int] = ()

    def install(self) -> Callable[[], None]:
        """Put hooks on the layers; returns what takes them off."""
        hooks = [layer.register_forward_hook(self._keep(number)) for number, layer in enumerate(self._layers, 1)]
        hooks.append(hook_with_kwargs(self._layers[0], self._keep_embeddings, before=True))

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return undo

    def read(self, row: int, layers: Sequence[int], logits: Tensor, *, final_norm: bool) -> Tensor:
        """Return logits `[layers, vocab]` of some layers at the row of a request, as the last forward left them.

        Args:
            row: Index of the request in the step.
            layers: Their outputs, counted from 1; 0 is the embeddings.
            logits: The model's own at that row `[vocab]`, by which the way of reading is checked once.
            final_norm: Whether the final norm comes first.

        Raises:
            ModelRefused: The last layer, read this way, differs from the logits, or a layer did not run.
        """
        self._require(row, layers, logits)
        states = torch.stack([self._states[layer][row] for layer in layers])
        return self._compute_logits(self._norm(states) if final_norm else states)

    def read_states(self, row: int, logits: Tensor) -> Tensor:
        """Return what each layer put out at the row of a request `[layers, hidden]`, as the last forward left it.

        Args:
            row: Index of the request in the step.
            logits: As for `read`.

        Raises:
            ModelRefused: As `read`.
        """
        layers = range(1, len(self._layers) + 1)
        self._require(row, layers, logits)
        return torch.stack([self._states[layer][row] for layer in layers])

    def _require(self, row: int, layers: Iterable[int], logits: Tensor) -> None:
        """Check that layers were kept, and once that the last one, read as the model reads it, gives the logits."""
        depth = len(self._layers)
        missing = {*layers, depth} - self._states.keys()
        if missing:
            raise ModelRefused(f"Layers {sorted(missing)} gave no output that can be read: set enforce_eager=True.")
        if not self._is_checked:
            self._check(self._states[depth][row], logits)

    def _check(self, last: Tensor, logits: Tensor) -> None:
        read = self._compute_logits(self._norm(last[None]))[0].float()
        error = float((read - logits.float()).abs().max() / logits.float().abs().max())
        if not error <= TOLERANCE * (1 if last.dtype == torch.float32 else 30):
            raise ModelRefused(
                f"Reading the last layer through norm and head differs from the logits by {error:.3g} of their size, so inner layers "
                "cannot be read out."
            )
        self._is_checked = True

    def _keep_embeddings(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the first layer gets: the first input of it that holds floats."""
        if 0 in self.layers_to_keep:
            inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            hidden = next(value for value in inputs if value.is_floating_point())
            self._states[0] = _pick(hidden, self._find_rows())

    def _keep(self, number: int) -> Callable[..., None]:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            if self.layers_to_keep and (number in self.layers_to_keep or number == len(self._layers)):
                hidden, residual = output if isinstance(output, tuple) else (output, None)
                rows = self._find_rows()
                states = _pick(hidden, rows)
                self._states[number] = states if residual is None else states + _pick(residual, rows)

        return keep


def _pick(states: Tensor, rows: Tensor) -> Tensor:
    """Return rows of hidden states `[tokens, hidden]`, or `[1, tokens, hidden]`."""
    return states.reshape(-1, states.shape[-1]).index_select(0, rows)
