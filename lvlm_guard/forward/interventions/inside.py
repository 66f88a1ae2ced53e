"""What is done inside the layers during one guarded call: edits, probes and readouts, installed and undone together."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.touched import Touched
from lvlm_guard.errors import InputError, ModelRefused
from lvlm_guard.forward.interventions import attention as attending
from lvlm_guard.forward.interventions import passes
from lvlm_guard.forward.interventions.compiled import as_written
from lvlm_guard.forward.interventions.passes import HiddenView, Pass, Place
from lvlm_guard.forward.interventions.readouts import Lens
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit, HiddenEdit, Readout, layer_range, readout_layers


@dataclass(eq=False)
class Inside:
    """Edits, probes and readouts of one call, resolved for one decoder.

    Args:
        module: The module that decodes.
        attention: Attention edits in the order of the stack.
        probes: Observations of attention.
        hidden: Edits of the decoder's hidden states.
        readouts: Layers whose logits are wanted.

    Raises:
        InputError: A layer or head outside the model.
        ModelRefused: The model has no part of the kind an edit names.
    """

    module: nn.Module
    attention: Sequence[AttentionEdit] = ()
    probes: Sequence[AttentionCapture] = ()
    hidden: Sequence[HiddenEdit] = ()
    readouts: Sequence[Readout] = ()
    lens: Lens | None = field(default=None, init=False)
    online: frozenset[int] = field(default=frozenset(), init=False)
    touched: Touched = field(default_factory=Touched, init=False)

    def __post_init__(self) -> None:
        if self.is_empty:
            return
        self.layers = anatomy.decoder_layers(self.module)
        depth = len(self.layers)
        self.attention_plan = _by_layer([*self.attention, *self.probes], depth)
        _check_heads(self.attention, self.layers)
        _check_attending(self.attention_plan, self.layers)
        wanted = {index for one in self.readouts for index in readout_layers(one, depth)}
        self.online = frozenset(index for one in self.readouts if one.online for index in readout_layers(one, depth))
        if wanted:
            self.lens = Lens(self.module, frozenset(wanted))
        self._beside_last = list(self._unread({(index, True) for index in self.online}))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.attention or self.probes or self.hidden or self.readouts)

    def changed(self, edits: Sequence[Any]) -> bool | None:
        """Whether any of the edits changed anything; None where there is no edit of the decoder among them."""
        mine = {id(edit) for edit in edits} & {id(edit) for edit in (*self.attention, *self.hidden)}
        return self.touched.any_of(mine) if mine else None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks and attention in place; all of it undone on the way out."""
        with ExitStack() as undo:
            if not self.is_empty:
                undo.enter_context(as_written())
            if self.attention or self.probes:
                undo.enter_context(attending.installed(self.module))
            for handle in self._hooks():
                undo.callback(handle.remove)
            yield

    def read(self, now: Pass, logits: Tensor, keep: int) -> dict[tuple[int, bool], Tensor]:
        """Logits `[rows, keep, vocab]` of every layer wanted, by (layer, whether normed), after main's forward."""
        if self.lens is None:
            return {}
        if (depth := len(self.layers)) in now.hidden and not self.lens.is_checked:
            self.lens.check(now.captured(depth, MAIN)[:, -keep:], logits[:, -keep:])
        found = dict(now.beside)
        found.update({(index, True): one for index, one in now.online.items()})
        for normed, layers in self._unread(found):
            read = self.lens.logits([now.captured(index, MAIN)[:, -keep:] for index in layers], final_norm=normed)
            found.update({(index, normed): one for index, one in zip(layers, read, strict=True)})
        return {key: one[:, -keep:].to(logits.device) for key, one in found.items()}

    def _unread(self, found: Container[tuple[int, bool]]) -> Iterator[tuple[bool, list[int]]]:
        """Layers wanted that are not among what was found, apart with and without the final norm."""
        for normed in (False, True):
            asked = [one for one in self.readouts if one.final_norm is normed]
            wanted = {index for one in asked for index in readout_layers(one, len(self.layers))}
            layers = sorted(index for index in wanted if (index, normed) not in found)
            if layers:
                yield normed, layers

    def _hooks(self) -> Iterator[Any]:
        yield from self._editing_hooks()
        if self.lens is not None:
            for index in self.lens.captured(len(self.layers)):
                if index:
                    yield self.layers[index - 1].register_forward_hook(self._capture(index))
                else:
                    yield self.layers[0].register_forward_pre_hook(self._capture_embeddings(), with_kwargs=True)
            yield self.lens.head.register_forward_pre_hook(self._join_head)
            yield self.lens.head.register_forward_hook(self._split_head)

    def _join_head(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Let the head read inner layers along with the last one: its weights are read once, not twice."""
        now, given = self._mine(MAIN), args[0] if args else None
        if now is None or self.lens is None or not isinstance(given, Tensor) or given.ndim != 3:  # noqa: PLR2004
            return None  # the lens itself asks with four dimensions
        if now.joined or given.shape[1] != now.predicting or not self.lens.layers <= now.hidden.keys():
            return None
        inner = [
            self.lens.stacked([now.captured(index, MAIN) for index in layers], final_norm=normed).flatten(0, 1)
            for normed, layers in self._beside_last
        ]
        if not inner:
            return None
        now.joined = given.shape[0]
        return (torch.cat([given, *(one.to(given) for one in inner)]), *args[1:])

    def _split_head(self, _: nn.Module, __: Any, logits: Tensor) -> Any:
        """Give the model its own rows back and keep those of inner layers."""
        now = self._mine(MAIN)
        if now is None or self.lens is None or not now.joined or now.beside:
            return None
        keys = [(index, normed) for normed, layers in self._beside_last for index in layers]
        inner = self.lens.scaled(logits[now.joined :]).unflatten(0, (len(keys), -1))
        now.beside.update(zip(keys, inner, strict=True))
        return logits[: now.joined]

    def _editing_hooks(self) -> Iterator[Any]:
        for edit in self.hidden:
            if edit.site == "embedding":
                yield self.layers[0].register_forward_pre_hook(self._before(edit), with_kwargs=True)
                continue
            for index in layer_range(edit.layers, len(self.layers)):
                part = anatomy.layer_part(self.layers[index], edit.site)
                yield part.register_forward_hook(self._after(edit, index), with_kwargs=True)

    def _after(self, edit: HiddenEdit, layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if (found := self._running(edit)) is None:
                return None
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(output, tuple):
                return (edit_hidden(output[0], edit, layer, *found, given), *output[1:])
            return edit_hidden(output, edit, layer, *found, given)

        return hook

    def _before(self, edit: HiddenEdit) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if (found := self._running(edit)) is None:
                return None
            if args:
                return (edit_hidden(args[0], edit, 0, *found, args[0]), *args[1:]), kwargs
            hidden = kwargs["hidden_states"]
            return args, {**kwargs, "hidden_states": edit_hidden(hidden, edit, 0, *found, hidden)}

        return hook

    def _capture(self, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            now = self._mine(MAIN)
            if now is not None and self.lens is not None:
                now.hidden[layer] = output[0] if isinstance(output, tuple) else output
                if layer in self.online:
                    now.online[layer] = self.lens.logits([now.captured(layer, MAIN)], final_norm=True)[0]

        return hook

    def _capture_embeddings(self) -> Callable[..., None]:
        keep = self._capture(0)
        return lambda part, args, kwargs: keep(part, args, args[0] if args else kwargs["hidden_states"])

    def _running(self, edit: HiddenEdit) -> tuple[Pass, Place] | None:
        """The running pass and where an edit applies in it; None in a pass of another call, or where it applies nowhere."""
        now = passes.current()
        place = now.place(edit) if now is not None and now.owner is self else None
        return None if now is None or place is None else (now, place)

    def _mine(self, key: Hashable) -> Pass | None:
        """The running pass, if it belongs to this call and holds the rows."""
        now = passes.current()
        return now if now is not None and now.owner is self and key in now.prompts else None


def edit_hidden(hidden: Tensor, edit: HiddenEdit, layer: int, now: Pass, place: Place, given: Any) -> Tensor:
    """Apply a hidden edit to its rows and positions of one layer's output `[rows, positions, hidden]`."""
    rows, everywhere = place
    before, own = hidden, given if isinstance(given, Tensor) else None
    if rows is not None:
        before, own = hidden[rows], None if own is None else own[rows]
    shape = before.shape
    if shape[-2] != now.new:
        return hidden
    view = HiddenView(now, edit.branch, layer, hidden.device, edit, own)
    edited = edit.edit(before, view)
    if edited.shape != shape:
        raise InputError(f"A hidden edit returned {tuple(edited.shape)} for {tuple(shape)}.")
    kept = edited.to(before)
    if not everywhere:
        kept = torch.where(view.positions[..., None], kept, before)
    now.owner.touched.note(id(edit), before, kept)
    if rows is None:
        return kept
    changed = hidden.clone()
    changed[rows] = kept
    return changed


def _by_layer(
    work: Sequence[AttentionEdit | AttentionCapture], depth: int
) -> dict[int, list[AttentionEdit | AttentionCapture]]:
    plan: dict[int, list[AttentionEdit | AttentionCapture]] = {}
    for one in work:
        for layer in layer_range(one.layers, depth):
            plan.setdefault(layer, []).append(one)
    return plan


def _check_attending(plan: dict[int, list[Any]], layers: nn.ModuleList) -> None:
    """Refuse layers that mix tokens without attention scores: an edit there would silently do nothing."""
    blind = [layer for layer in plan if not anatomy.attends(layers[layer])]
    if blind:
        raise ModelRefused(
            f"Layers {blind} of this model have no attention that can be edited. Choose layers of the other kind."
        )


def _check_heads(edits: Sequence[AttentionEdit], layers: nn.ModuleList) -> None:
    heads = anatomy.head_count(layers)
    for edit in edits:
        wrong = [head for head in edit.heads or () if not 0 <= head < heads]
        if wrong:
            raise InputError(f"Head {wrong[0]} lies outside a decoder of {heads} heads (0 to {heads - 1}).")
