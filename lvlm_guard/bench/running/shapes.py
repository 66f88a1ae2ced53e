"""Sizes of a vision-language model that decide what a step must read and compute, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import InputError

FULL_ATTENTION = "full_attention"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Vision:
    """A vision encoder without its projector.

    Args:
        layers: Transformer layers.
        width: Hidden size.
        ffn: Inner size of a feed-forward block.
        matrices: Matrices of a feed-forward block: 2, or 3 with a gate.
        patches: Patches per image token.
        classes: Positions beside the patches.
        window: Patches per attention window; None where every layer attends to all.
        full: Layers that attend to all although there are windows.
    """

    layers: int
    width: int
    ffn: int
    matrices: int = 2
    patches: int = 1
    classes: int = 0
    window: int | None = None
    full: int = 0

    def flops(self, image_tokens: int) -> float:
        """Return the floating-point operations (a multiply and an add are two) of encoding one image."""
        positions = image_tokens * self.patches + self.classes
        linear = self.layers * (4 * self.width**2 + self.matrices * self.width * self.ffn)
        full = self.layers if self.window is None else self.full
        keys = full * positions + (self.layers - full) * (self.window or 0)
        return 2.0 * positions * linear + 4.0 * positions * keys * self.width


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward blocks and full attention, its head, and the images it reads.

    Norms and biases, below 0.1 % of a 7B model, are left out, and so is the embedding table, of which a step reads single
    rows; a head tied to it is counted, since a step reads all of it.

    Args:
        name: What predictions call it.
        layers: Decoder layers.
        width: Hidden size.
        heads: Query heads.
        kv_heads: Key and value heads; as many as `heads` without grouping.
        head_width: Size of a head.
        ffn: Inner size of a feed-forward block.
        vocabulary: Rows of the head.
        image_tokens: Positions of one image in the prompt.
        vision: The encoder; None leaves it out of the prefill.
        value_bytes: Bytes of a weight, key or value; 2 for bfloat16.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    image_tokens: int
    vision: Vision | None = None
    value_bytes: int = 2

    @classmethod
    def of(
        cls,
        config: Any,
        name: str | None = None,
        *,
        image_tokens: int | None = None,
        vision: Vision | None = None,
        value_bytes: int = 2,
    ) -> Shape:
        """Read a transformers config.

        Args:
            config: Config of a vision-language model, or of a language model.
            name: What to call it; the config's model type by default.
            image_tokens: Positions of one image; needed where the config does not fix them (Qwen: it depends on the size).
            vision: The encoder; known for LLaVA and Qwen2.5-VL, left out of the prefill for others unless given.
            value_bytes: Bytes of a weight, key or value.

        Raises:
            InputError: The number of image tokens is not known, or the decoder is not dense with full attention, so that
                the arithmetic would not hold.
        """
        text = config.get_text_config()
        _refuse_other_decoders(config, text)
        heads = int(text.num_attention_heads)
        return cls(
            name=name or str(config.model_type),
            layers=int(text.num_hidden_layers),
            width=int(text.hidden_size),
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_width=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            ffn=int(text.intermediate_size),
            vocabulary=int(text.vocab_size),
            image_tokens=_image_tokens(config) if image_tokens is None else image_tokens,
            vision=_vision(config) if vision is None else vision,
            value_bytes=value_bytes,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of all decoder layers."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.ffn)

    @property
    def weights(self) -> int:
        """Weights that a decode step reads: all layers and the head."""
        return self.layer_weights + self.vocabulary * self.width

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a decode step reads."""
        return self.weights * self.value_bytes

    @property
    def position_bytes(self) -> int:
        """Bytes of the keys and values of one position of one row."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.value_bytes

    def prefill_flops(self, positions: float) -> float:
        """Return the floating-point operations of the prefill of a row: causal attention, head at the last position only."""
        attention = 2.0 * self.layers * positions**2 * self.heads * self.head_width
        return 2.0 * self.layer_weights * positions + attention + 2.0 * self.vocabulary * self.width

    def step_flops(self, positions: float) -> float:
        """Return the floating-point operations of one decode step of one row over `positions` cached positions."""
        return 2.0 * self.weights + 4.0 * self.layers * positions * self.heads * self.head_width


def _refuse_other_decoders(config: Any, text: Any) -> None:
    kinds = set(getattr(text, "layer_types", None) or [FULL_ATTENTION])
    experts = any(getattr(text, name, None) for name in EXPERTS)
    if kinds != {FULL_ATTENTION} or experts or getattr(text, "cross_attention_layers", None):
        raise InputError(
            f"The arithmetic holds for dense decoders with full attention in every layer, which {config.model_type} does not "
            "have. Measure this model instead: lvlm-guard bench cost."
        )


def _image_tokens(config: Any) -> int:
    number = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
    if number is None:
        raise InputError(
            f"The config of {config.model_type} does not say how many image tokens a picture has, since that depends on the "
            "picture: pass image_tokens= (--image-tokens)."
        )
    return int(number)


def _vision(config: Any) -> Vision | None:
    """Return the encoder, where its config is understood."""
    encoder: Any = getattr(config, "vision_config", None)
    if config.model_type == "llava" and encoder.model_type == "clip_vision_model":
        return Vision(encoder.num_hidden_layers, encoder.hidden_size, encoder.intermediate_size, classes=1)
    if config.model_type == "qwen2_5_vl":
        return Vision(
            encoder.depth,
            encoder.hidden_size,
            encoder.intermediate_size,
            matrices=3,
            patches=encoder.spatial_merge_size**2,
            window=(encoder.window_size // encoder.patch_size) ** 2,
            full=len(encoder.fullatt_block_indexes),
        )
    return None


LLAVA_1_5_7B = Shape(
    name="LLaVA-1.5-7B",
    layers=32,
    width=4096,
    heads=32,
    kv_heads=32,
    head_width=128,
    ffn=11008,
    vocabulary=32064,
    image_tokens=576,
    vision=Vision(24, 1024, 4096, classes=1),
)
"""LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels and a Llama decoder without grouped heads (512 KiB per position)."""

QWEN2_5_VL_7B = Shape(
    name="Qwen2.5-VL-7B",
    layers=28,
    width=3584,
    heads=28,
    kv_heads=4,
    head_width=128,
    ffn=18944,
    vocabulary=152064,
    image_tokens=1200,
    vision=Vision(32, 1280, 3420, matrices=3, patches=4, window=64, full=4),
)
"""Qwen2.5-VL-7B reading an image of 4800 patches; replace `image_tokens` for others. 56 KiB per position."""

SHAPES: Mapping[str, Shape] = {"llava-1.5-7b": LLAVA_1_5_7B, "qwen2.5-vl-7b": QWEN2_5_VL_7B}
"""Shapes by the names that the command line takes."""
