"""Default configs made tiny by the names of their fields."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lvlm_guard.testing.tiny import IMAGE_TOKEN, VISION_END, VISION_START, VOCABULARY

HIDDEN, HEADS, HEAD = 32, 4, 8
TEXT_LAYERS, TOWER_LAYERS = 4, 2
PATCH, IMAGE = 4, 16
LARGE = 1024
"""Numbers from here on are sizes, whatever their field is called."""
VISIBLE = 0.02
"""Weights of some towers start so near zero that they see nothing."""
VIDEO_TOKEN, FILM_START, FILM_END = 101, 105, 106
SPECIAL = range(95, VOCABULARY)
"""Token ids that no prompt holds as text and nothing generates."""

_NAMES: tuple[tuple[int, str], ...] = (
    (
        HIDDEN,
        """
        hidden_size embed_dim d_model word_embed_proj_dim projection_dim out_hidden_size projector_hidden_size
        projection_hidden_size encoder_hidden_size text_hidden_size output_channels projector_input_dim
        projector_output_dim image_text_hidden_size patch_embed_hidden_size vision_output_dim
        projection_intermediate_size decoder_hidden_size alignment_intermediate_size projection_hidden_dim
        post_conv_in_channels post_conv_out_channels post_conv_mid_channels base_channels adapter_input_size
        adapter_in_dim adapter_out_dim image_token_embed_dim vision_hidden_size pooler_output_size output_dim
        """,
    ),
    (
        64,
        """
        intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim mlp_dim d_ff intermediate_size_mlp
        dense_intermediate_size merged_hidden_size
        """,
    ),
    (
        HEADS,
        """
        num_attention_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads
        swa_num_attention_heads linear_num_heads n_routed_experts num_experts num_local_experts moe_num_experts
        linear_num_value_heads mamba_num_heads resampler_n_heads resampler_n_latents num_query_tokens
        latent_query_num mm_tokens_per_image num_image_tokens
        """,
    ),
    (
        HEAD,
        """
        head_dim swa_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim linear_key_head_dim
        linear_head_dim linear_value_head_dim mamba_head_dim d_kv ssm_state_size resampler_head_dim d_rel
        hidden_size_per_layer_input query_pre_attn_scalar rotary_dim
        """,
    ),
    (
        2,
        """
        num_experts_per_tok moe_k moe_topk top_k_experts index_n_heads linear_num_key_heads
        swa_num_key_value_heads moe_num_shared_experts n_groups
        """,
    ),
    (
        1,
        """
        n_group topk_group first_k_dense_replace n_shared_experts cross_attention_frequency num_global_layers
        encoder_stride insert_layer_id
        """,
    ),
    (
        16,
        """
        moe_intermediate_size kv_lora_rank q_lora_rank shared_intermediate_size shared_experts_intermediate_size
        shared_expert_intermediate_size moe_shared_expert_intermediate_size sliding_window sliding_window_size
        index_topk num_position_embeddings num_patches rel_extent latent_channels
        """,
    ),
    (IMAGE, "image_size window_size"),
    (PATCH, "patch_size"),
    (512, "max_position_embeddings"),
    (VOCABULARY, "vocab_size unpadded_vocab_size vocab_size_per_layer_input"),
)
_LAYERS = [
    "num_hidden_layers",
    "depth",
    "layers",
    "encoder_layers",
    "decoder_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layers",
]
_SIZES = {name: size for size, names in _NAMES for name in names.split()}
_DERIVED = {
    "full_attn_idxs",
    "no_rope_layers",
    "moe_layers",
    "per_layer_config",
    "_sliding_window_pattern",
    "kv_source_layers",
    "indexer_types",
    "qk_head_dim",
}
_PLAIN = set(PretrainedConfig().to_dict()) | {"transformers_version", "id2label", "label2id"}
_INHERITED = {
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "model_type", "is_decoder", "add_cross_attention",
}  # fmt: skip
_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_NAMED_TOKENS = {"image": IMAGE_TOKEN, "image_patch": IMAGE_TOKEN, "video": VIDEO_TOKEN, "audio": 104}


def shrink(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return a tiny config like a default one; `changes` are merged over it, nested as the config is."""
    values = merge(_shrink(config.to_dict(), TEXT_LAYERS), changes)
    return type(config)(**values)


def rope_sections(model_class: type) -> dict[str, Any]:
    """Return the change that gives time, height and width their shares of a head, where the class has such positions."""
    source = Path(inspect.getfile(model_class)).read_text(encoding="utf-8")
    if "mrope_section" not in source:
        return {}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    interleaved = "apply_interleaved_mrope" in source
    rope |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True} if interleaved else {"mrope_section": [1, 1, 2]}
    return {"text_config": {"rope_parameters": rope}}


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with changes over them; mappings are merged, anything else replaced."""
    merged = dict(values)
    for name, change in changes.items():
        inner = isinstance(change, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], change) if inner else change
    return merged


def _shrink(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    fields = {name: value for name, value in values.items() if name in _INHERITED or name not in _PLAIN | _DERIVED}
    return {name: _shrink_field(name, value, layers, values) for name, value in fields.items()}


def _shrink_field(name: str, value: Any, layers: int, siblings: Mapping[str, Any]) -> Any:
    """Return the tiny value of one field; `siblings` are the fields of the same config."""
    if isinstance(value, Mapping):
        return _shrink_mapping(name, value, layers)
    if name in _TOKENS:
        return _TOKENS[name]
    if name.endswith(("_token_id", "_token_index", "_patch_id")):
        return _token(name)
    if value is None or value == 0:
        return value
    shrink_value = _shrink_list if isinstance(value, list) else _shrink_number
    return shrink_value(name, value, layers, siblings)


def _shrink_mapping(name: str, value: Mapping[str, Any], layers: int) -> Any:
    if "model_type" in value:
        return _shrink(value, TEXT_LAYERS if name.startswith(("text", "decoder")) else TOWER_LAYERS)
    if name in {"rope_parameters", "vocabulary_map"}:
        return value
    return {inner: _shrink_field(str(inner), part, layers, value) for inner, part in value.items()}


def _shrink_list(name: str, value: list[Any], layers: int, siblings: Mapping[str, Any]) -> Any:
    if name.endswith(("layer_types", "block_type")):
        return list(itertools.islice(itertools.cycle(dict.fromkeys(value)), layers))
    if name in _SIZES:
        return [_SIZES[name]] * min(len(value), layers)
    if name.endswith(("indexes", "indices")):
        return [0, 1]
    return value[:layers] if len(value) == siblings.get("num_hidden_layers") else value


def _shrink_number(name: str, value: Any, layers: int, siblings: Mapping[str, Any]) -> Any:
    if name in _LAYERS:
        return layers
    if name == "initializer_range":
        return max(value, VISIBLE)
    if name == "num_key_value_heads":
        return HEADS if value == siblings.get("num_attention_heads") else HEADS // 2
    return _SIZES.get(name, HIDDEN if type(value) is int and value >= LARGE else value)


def _token(name: str) -> int:
    """Return the id of a special token by the name of its field."""
    stem = name.rsplit("_token", 1)[0].removesuffix("_id")
    if stem in _NAMED_TOKENS:
        return _NAMED_TOKENS[stem]
    if "video" in stem or "frame" in stem or "audio" in stem or stem in {"boa", "eoa"}:
        return 105
    return VISION_END if "end" in stem or stem == "eoi" else VISION_START
