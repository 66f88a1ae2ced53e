"""What a mechanism should give: plain generate of main and of each branch written by hand, made to follow the same tokens."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lvlm_guard.forward.installations import hook_with_kwargs
from lvlm_guard.testing.tiny import IMAGE_TOKEN

Inputs = Mapping[str, Tensor]
Change = Callable[[Tensor], Tensor]
_TOWERS = re.compile(r"vision|visual|image_tower|image_encoder|tower")
_ENCODER = re.compile(r"(model\.)?encoder\.")
_OTHER_TOWERS = re.compile(r"audio|video_tower")
LAST = 5
"""Chosen where it does not matter."""
_NOT_DECODER = re.compile(r"vision|visual|tower|encoder|audio|qformer|resampler|expert|vq|projector|merger")


class TokenPath:
    """Makes generate choose tokens `[rows, steps]`, and anything after the last of them.

    Passed as `prefix_allowed_tokens_fn`, which models with a generate of their own hand on.
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens.tolist()
        self._start: int | None = None

    def __call__(self, row: int, ids: Tensor) -> list[int]:
        """Return the tokens that a row with these ids may go on with."""
        self._start = ids.shape[0] if self._start is None else self._start
        step = ids.shape[0] - self._start
        path = self._tokens[row]
        return path[step : step + 1] if step < len(path) else [LAST]


def follow(model: Any, inputs: Mapping[str, Any], tokens: Tensor, *, use_cache: bool, **settings: Any) -> Tensor:
    """Return raw logits `[steps + 1, rows, vocab]` in fp32 of a generate that chooses `tokens` `[rows, steps]`.

    Args:
        model: What has the `generate`: a model, or a guard.
        inputs: Model inputs; tensors are copied.
        tokens: Token ids.
        use_cache: Whether keys and values are kept from step to step.
        **settings: Further arguments of generate.
    """
    output = model.generate(
        **{name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()},
        max_new_tokens=tokens.shape[1] + 1,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
        prefix_allowed_tokens_fn=TokenPath(tokens),
        **settings,
    )
    return torch.stack(output.logits).float()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that decode text: the longest list of modules outside every tower, the shortest name first.

    Raises:
        LookupError: There is none.
    """
    return _longest(model, lambda name: "decoder." in name or not _NOT_DECODER.search(name))


def tower_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the tower that encodes images, which may be the encoder of the model; some towers do it without attention.

    Raises:
        LookupError: There are none.
    """
    try:
        return _longest(model, lambda name: bool(_TOWERS.search(name)) and not _OTHER_TOWERS.search(name))
    except LookupError:
        return _longest(model, lambda name: bool(_ENCODER.match(name)))


def _longest(model: nn.Module, is_candidate: Callable[[str], bool]) -> list[nn.Module]:
    stacks = [
        (not _attends(layers), -len(layers), len(name), layers)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and is_candidate(name) and (layers := list(_flatten(part)))
    ]
    if not stacks:
        raise LookupError(f"{type(model).__name__} shows no layers of this kind.")
    return min(stacks, key=lambda stack: stack[:3])[3]


def _flatten(stack: nn.ModuleList) -> Iterator[nn.Module]:
    for part in stack:
        yield from _flatten(part) if isinstance(part, nn.ModuleList) else (part,)


def _attends(layers: Sequence[nn.Module]) -> bool:
    return any("Attention" in type(part).__name__ for layer in layers for part in layer.modules())


@contextmanager
def outputs_changed(layers: Sequence[nn.Module], change: Change) -> Iterator[None]:
    """Change what layers return, in this block: inside of every hook, so that hidden states that hooks keep are changed too."""
    with ExitStack() as stack:
        for layer in layers:
            before = vars(layer).get("forward")
            layer.forward = _changed(layer.forward, change)
            stack.callback(_put_back, layer, before)
        yield


def _changed(forward: Callable[..., Any], change: Change) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return run


def _put_back(layer: nn.Module, before: Any) -> None:
    if before is None:
        del layer.forward
    else:
        layer.forward = before


@contextmanager
def ended_after(layers: Sequence[nn.Module], last: int) -> Iterator[None]:
    """Let the output of layer `last`, counted from 0, stand for that of the last layer, in this block."""
    output: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        output[:] = [hidden]
        return hidden

    with (
        outputs_changed([layers[last]], keep),
        outputs_changed([layers[-1]], lambda hidden: output[0][:, -hidden.shape[1] :]),
    ):
        yield


@contextmanager
def image_favoured(layers: Sequence[nn.Module], ids: Tensor, amount: float, *, encoded: bool = False) -> Iterator[None]:
    """Add to the attention scores of image keys of one prompt, ids `[1, length]`, through the masks of eager attention.

    Args:
        layers: Layers of the decoder; those without attention are left alone.
        ids: What the keys stand for: the first keys, or where an encoder read it, the last ones.
        amount: What is added.
        encoded: Whether an encoder read the prompt.

    Raises:
        LookupError: No attention of one of these layers got a mask to add to, or part of it reads the mask for a purpose of its own.
    """
    bias = _Bias((ids[0] == IMAGE_TOKEN) * amount, encoded=encoded)
    attending: set[nn.Module] = set()
    with ExitStack() as stack:
        for layer in layers:
            for part in layer.children():
                name = type(part).__name__
                if "Attention" in name and (
                    encoded or "Cross" not in name
                ):  # where all keys are the image's, nothing changes
                    attending.add(layer)
                    add = functools.partial(bias.add, layer)
                    stack.callback(hook_with_kwargs(part, add, before=True).remove)
                    for inner in part.children():
                        _refuse_reader(inner)
                        stack.callback(hook_with_kwargs(inner, bias.refuse_readers, before=True).remove)
        yield
    if not attending or bias.reached != attending:
        raise LookupError("Eager attention got no mask to add to in some of these layers.")


def _refuse_reader(part: nn.Module) -> None:
    """Refuse a part of an attention module that takes the mask in a method of its own, where no hook sees it."""
    methods = (value for name, value in vars(type(part)).items() if name != "forward" and inspect.isfunction(value))
    if any("attention_mask" in inspect.signature(method).parameters for method in methods):
        raise LookupError("A part of this attention chooses keys by the mask.")


class _Bias:
    """Adds to the masks that attention modules take.

    Args:
        amounts: What is added at each position of the prompt `[length]`.
        encoded: Whether an encoder read the prompt, so that its keys are the last ones.
    """

    def __init__(self, amounts: Tensor, *, encoded: bool) -> None:
        self.reached: set[nn.Module] = set()
        self._amounts = amounts
        self._encoded = encoded
        self._newest: Tensor | None = None

    def add(self, layer: nn.Module, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add to the masks of one call of an attention module of a layer."""
        states = kwargs.get("key_value_states")
        if isinstance(states, Tensor) and kwargs.get("attention_mask") is None:
            kwargs = {**kwargs, "attention_mask": torch.zeros(1, 1, 1, states.shape[1])}  # one that hides nothing
        masks = {name: self._add_to(layer, value) for name, value in kwargs.items() if name.endswith("attention_mask")}
        return args, {**kwargs, **masks}

    def _add_to(self, layer: nn.Module, mask: Any) -> Any:
        length = len(self._amounts)
        is_mask = isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point()  # noqa: PLR2004
        if not is_mask or (self._encoded and mask.shape[-1] < length):
            return mask
        self.reached.add(layer)
        missing = mask.shape[-1] - length
        self._newest = mask + pad(self._amounts, (missing, 0) if self._encoded else (0, missing))
        return self._newest

    def refuse_readers(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse parts of an attention module that take the mask, too."""
        if any(value is self._newest for value in (*args, *kwargs.values()) if value is not None):
            raise LookupError("A part of this attention chooses keys by the mask.")
