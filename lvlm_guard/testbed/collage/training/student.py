"""The model as it is taught: frozen language weights with low-rank changes beside them, a projector and a table of places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.delta import LAYERS, Delta
from lvlm_guard.testbed.collage.training.rows import PackedRows

RANK = 16
SCALE = 2.0
"""What the product of the two factors of a change counts."""


class Student(nn.Module):
    """A model with low-rank changes in all linear layers of its language model.

    Its frozen weights are kept in `dtype`, all that is taught in fp32.

    Args:
        model: The assembled model; its language model is changed in place.
        rank: Rank of the changes.
        dtype: What forward and backward compute in.
        seed: Of the first factors.

    Raises:
        InputError: `peft` is not installed.
    """

    def __init__(self, model: Any, rank: int = RANK, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        super().__init__()
        self.rank, self.dtype = rank, dtype
        self.projector = model.model.multi_modal_projector.float()
        self.places = nn.Parameter(model.model.vision_tower.places.detach().clone().float())
        self._tuners, self.language = _adapt(model.model.language_model, rank, dtype, seed)
        self.head: Tensor = model.lm_head.weight.detach().to(dtype)

    def taught(self) -> dict[str, nn.Parameter]:
        """Return what is taught, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set what is taught to values by the same names."""
        for name, weight in self.taught().items():
            weight.copy_(values[name])

    def hidden(
        self, rows: PackedRows, features: Tensor | None, loan: Tensor | None = None, share: float = 0.0
    ) -> Tensor:
        """Return the last hidden states, shape (rows, columns, hidden).

        Args:
            rows: What is fed.
            features: Of the tower, without places, shape (rows, tokens, channels); None where the rows have no picture.
            loan: What the image tokens are made of besides, shape (rows, tokens, hidden).
            share: How much of them is lent, between 0 and 1.
        """
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            embedded = self.language.embed_tokens(rows.ids)
            if features is not None:
                image = self.projector(features + self.places).to(embedded.dtype)
                if loan is not None and share > 0:
                    image = share * loan.to(embedded.dtype) + (1 - share) * image
                embedded = embedded.masked_scatter(rows.image[..., None], image)
            out: Tensor = self.language(
                inputs_embeds=embedded,
                position_ids=rows.positions,
                attention_mask=_additive(rows.visible(), embedded.dtype),
                use_cache=False,
            ).last_hidden_state
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits in fp32 of hidden states of shape (positions, hidden)."""
        return nn.functional.linear(hidden.to(self.dtype), self.head).float()

    def untaught(self, rows: PackedRows) -> Tensor:
        """Return the last hidden states of the language model as it was, of rows without a picture."""
        with torch.no_grad(), _switched_off(self._tuners.values()):
            return self.hidden(rows, None)

    def delta(self) -> Delta:
        """Return what was taught so far."""
        changes = {
            f"{name}.{factor}": getattr(tuner, f"lora_{factor}")["default"].weight.detach().clone()
            for name, tuner in self._tuners.items()
            for factor in ("A", "B")
        }
        projector = {name: weight.detach().clone() for name, weight in self.projector.state_dict().items()}
        return Delta(changes, projector, self.places.detach().clone(), SCALE)


def _adapt(language: Any, rank: int, dtype: torch.dtype, seed: int) -> tuple[dict[str, Any], Any]:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - an extra
        from peft.tuners.lora import LoraLayer  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise InputError(
            "the collage model is taught with the package peft, which is not installed. Install the extra: "
            "pip install 'lvlm-guard[collage]'"
        ) from problem
    language.requires_grad_(requires_grad=False).to(dtype)
    language.set_attn_implementation("eager")
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), target_modules=list(LAYERS), lora_dropout=0.0)
    adapted: Any = inject_adapter_in_model(config, language)
    tuners = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    for tuner in tuners.values():
        tuner.cast_input_dtype_enabled = False
        for factor in (tuner.lora_A, tuner.lora_B):
            factor["default"].float()
    return tuners, adapted


@contextmanager
def _switched_off(tuners: Iterable[Any]) -> Iterator[None]:
    """Open a scope in which the low-rank changes count nothing."""
    for tuner in tuners:
        tuner.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for tuner in tuners:
            tuner.enable_adapters(enabled=True)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def gather(rows: PackedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return where something is learnt, what, and what it counts: bool (rows, columns), ids and weights (positions)."""
    learnt = rows.targets >= 0
    return learnt, rows.targets[learnt], rows.weights[learnt]
