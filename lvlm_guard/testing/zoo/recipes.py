"""What differs by type from a default config made tiny and from the commonest inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GRID = [[1, 4, 4]]


@dataclass(frozen=True)
class Recipe:
    """How the tiny model of a type and its inputs are made.

    Args:
        changes: Merged over the shrunk config, nested as it is.
        images: Model inputs of one image by name: the shape of floats as a tuple, or whole numbers as nested lists. None
            is one picture `[1, 3, 16, 16]`, or packed patches and their grid where the model takes a grid.
        prompt: Token ids that stand for the image; None is fences round as many placeholders as there are features.
        text: Name of the input that holds the prompt; of encoder-decoders whose encoder sees the image alone, the decoder's.
        opening: Token ids that the prompt begins with.
        words: Special tokens of the processor by word, where something needs a processor: a config that names no placeholder,
            or pixels with an axis of tiles that belong to one image or to several.
        names: What the processor calls some of those words.
        text_alone: Path of the module that decodes a prompt without an image, where the model's generate takes none.
        cut: Tokens that the model's generate takes off the end of a prompt.
        scaled: Factors for parameters by the ending of their names, where a part of the model would drown the image, or its
            scores grow so large that rounding shows.
        films: Whether what the model calls its pixels are the frames of a video.
        videos: Model inputs of one video, like `images`; None is what the model's signature says.
        filmed: Token ids that stand for the video; None is fences round as many placeholders as there are features.
        apart: Whether the frames of a video stand apart, each in fences of its own behind its time.
        per_row: Whether pixels have an axis of images behind that of rows.
        single: Whether a prompt can hold one image at most.
        skipped: Why no model is built; empty where one is.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] | None = None
    prompt: tuple[int, ...] | None = None
    text: str = "input_ids"
    opening: tuple[int, ...] = ()
    words: Mapping[str, int] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    text_alone: str = ""
    cut: int = 0
    scaled: Mapping[str, float] = field(default_factory=dict)
    films: bool = False
    videos: Mapping[str, Any] | None = None
    filmed: tuple[int, ...] | None = None
    apart: bool = False
    per_row: bool = False
    single: bool = False
    skipped: str = ""


_FRAME = {"pixel_values": (1, 3, 16, 16)}
_TILES = {"pixel_values": (1, 2, 3, 16, 16), "pixel_attention_mask": [[[[1] * 16] * 16] * 2]}
_PATCHES = {"pixel_values": (16, 3, 4, 4), "image_grid_thw": GRID}
_PLACES = [[[row, column] for row in range(4) for column in range(4)]]
_QUARTERS = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
_LARGE = {"pixel_values": (1, 3, 32, 32)}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
_SECTIONS = {**_ROPE, "mrope_section": [1, 1, 2]}
_START_END = {"vision_start_token_id": 102, "vision_end_token_id": 103}
_MINICPM = {"image_token_id": 100, "video_token_id": 101, "vision_config": {"insert_layer_id": 0}, "insert_layer_id": 0}
_STRIP = {"pixel_values": (1, 3, 4, 256), "target_sizes": [[8, 8]]}
_QFORMER = {"qformer_input_ids": [[7, 8, 9]], "qformer_attention_mask": [[1, 1, 1]]}
_FILM_STRIP = {"pixel_values_videos": (1, 3, 4, 512), "target_sizes_videos": [[8, 8], [8, 8]]}
_GEMMA4_VIDEO = {
    "pixel_values_videos": (2, 16, 48),
    "video_position_ids": _PLACES * 2,
    "num_frames_per_video": [2],
}
_GEMMA4_IMAGE = {"pixel_values": (1, 16, 48), "image_position_ids": _PLACES}
_TINY_GEMMA4_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "pooling_kernel_size": 2,
    "patch_size": 4,
    "position_embedding_size": 16,
}
_PLACEHOLDER = {"<image>": 100}
_CALM_QUERIES = {"image_to_text_projection.latent_query": 0.01}
_LAYERED = ["dense", "sparse", "dense", "sparse"]
_TIMED_VIDEO = {"pixel_values_videos": (32, 96), "video_grid_thw": [[2, 4, 4]], "video_second_per_grid": [1.0]}
_FILM = {"video_start_token_id": 105, "video_end_token_id": 106}
_FILMED = (105, 102, *(100,) * 4, 103, 120, 102, *(100,) * 4, 103, 121, 106)
_SAM = {"image_size": 64, "downsample_channels": [32, 32], "global_attn_indexes": [1], "window_size": 2}
_NEEDS_TIMM = "Its vision tower needs timm."

RECIPES: dict[str, Recipe] = {
    "aria": Recipe({"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4}),
    "blip": Recipe(prompt=(), opening=(1,), words={}, text_alone="text_decoder", cut=1, single=True),
    "blip-2": Recipe({"image_token_index": 100}, text_alone="language_model"),
    "chameleon": Recipe(
        {
            "image_token_id": 100,
            "vocabulary_map": {"<image>": 100} | {f"IMGIMG{chr(65 + code)}Z": 105 + code for code in range(8)},
            "vq_config": {
                "num_embeddings": 8,
                "resolution": 16,
                "channel_multiplier": [1, 1, 1],
                "num_res_blocks": 1,
                "latent_channels": 32,
            },
        }
    ),
    "cohere_compass": Recipe({"text_config": {"rope_parameters": {"full_attention": _SECTIONS}}}, apart=True),
    "cosmos3_edge": Recipe(apart=True),
    "cosmos3_omni": Recipe(apart=True),
    "deepseek_ocr2": Recipe(
        {
            "text_config": {
                "num_experts_per_tok": 2,
                "mlp_layer_types": _LAYERED,
                "n_group": 1,
                "topk_group": 1,
            },
            "vision_config": {"sam_config": _SAM},
        },
        {"pixel_values": (1, 3, 64, 64)},
    ),
    "deepseek_vl_hybrid": Recipe(images={**_FRAME, "high_res_pixel_values": (1, 3, 16, 16)}),
    "dots3_note": Recipe({"audio_config": {"adapter_input_size": 32, "conv_output_size": 32}}),
    "emu3": Recipe(
        {
            "image_token_id": 100,
            "vocabulary_map": {"<image>": 100, "<|extra_200|>": 104}
            | {f"<|visual token {code:06}|>": 105 + code for code in range(8)},
            "vq_config": {
                "codebook_size": 8,
                "channel_multiplier": [1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
            },
        }
    ),
    "ernie4_5_vl_moe": Recipe({"text_config": {"moe_intermediate_size": [16, 16]}}),
    "fast_vlm": Recipe(skipped=_NEEDS_TIMM),
    "florence2": Recipe(
        {
            "vision_config": {
                "depths": [1, 1],
                "patch_size": [3, 3],
                "patch_stride": [2, 2],
                "patch_padding": [1, 1],
                "patch_prenorm": [False, True],
                "embed_dim": [32, 32],
                "num_heads": [4, 4],
                "num_groups": [4, 4],
                "window_size": 4,
            }
        }
    ),
    "fuyu": Recipe(images={"pixel_values": (1, 16, 48)}, prompt=(100,) * 16),
    "gemma3n": Recipe(skipped=_NEEDS_TIMM),
    "gemma4": Recipe(
        {"vision_config": {"model_type": "gemma4_vision", **_TINY_GEMMA4_TOWER}},
        _GEMMA4_IMAGE,
        videos=_GEMMA4_VIDEO,
    ),
    "gemma4_unified": Recipe(
        {
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": 2,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
            }
        },
        _GEMMA4_IMAGE,
        videos=_GEMMA4_VIDEO,
    ),
    "git": Recipe(prompt=(), words={}, single=True),
    "glm46v": Recipe({"text_config": {"rope_parameters": _SECTIONS}, **_FILM}, filmed=_FILMED, apart=True),
    "glm4v": Recipe(_FILM, filmed=_FILMED, apart=True),
    "glm4v_moe": Recipe(_FILM, filmed=_FILMED, apart=True),
    "glm5_next": Recipe(_FILM, filmed=_FILMED, apart=True),
    "glm_ocr": Recipe(_FILM, filmed=_FILMED, apart=True),
    "glmga": Recipe({"text_config": {"rope_parameters": _SECTIONS}, **_FILM}, filmed=_FILMED, apart=True),
    "got_ocr2": Recipe({"vision_config": {"image_size": 32}}, _LARGE),
    "granite4_vision": Recipe(
        {
            "downsample_rate": "1/2",
            "vision_config": {"hidden_size": 64},
            "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
            "deepstack_layer_map": [[0, 1]],
            "spatial_target_layers": [0, 1, 2, 3],
            "image_grid_pinpoints": [[16, 16]],
        },
        {"pixel_values": (1, 2, 3, 16, 16), "image_sizes": [[16, 16]]},
        prompt=(100,) * 10,
    ),
    "granite_docling": Recipe(
        {"vision_config": {"scale_factor": 2}},
        {"pixel_values": (1, 1, 3, 16, 16), "pixel_attention_mask": [[True]]},
        words=_PLACEHOLDER,
        per_row=True,
    ),
    "hunyuan_vl": Recipe({"text_config": {"head_dim": 8}, "im_start_id": 106, "im_end_id": 107, "im_newline_id": 108}),
    "idefics": Recipe(
        images={"pixel_values": (1, 1, 3, 16, 16)},
        prompt=(102, 100, 102),
        words={"<image>": 100, "<fake_token_around_image>": 102},
        names={"image_token": "<image>"},
        per_row=True,
    ),
    "idefics2": Recipe(
        images={"pixel_values": (1, 1, 3, 16, 16), "pixel_attention_mask": [[[[1] * 16] * 16]]},
        words=_PLACEHOLDER,
        per_row=True,
    ),
    "idefics3": Recipe(words=_PLACEHOLDER, per_row=True),
    "inkling2": Recipe(images={"pixel_values": (4, 8, 8, 3), "image_grid_thw": [[1, 2, 2]]}),
    "inkling_mm_model": Recipe(
        {"vision_config": {"patch_size": 8, "num_hidden_layers": 2}}, {"pixel_values": (4, 2, 8, 8, 3)}
    ),
    "instructblipvideo": Recipe(
        {"video_token_index": 100},
        {"pixel_values": (1, 2, 3, 16, 16), **_QFORMER},
        prompt=(100,) * 8,
        text_alone="language_model",
        films=True,
        single=True,
    ),
    "instructblip": Recipe(text_alone="language_model"),
    "kimi_k25": Recipe(images=_PATCHES, videos={"pixel_values_videos": (16, 3, 4, 4), "video_grid_thw": GRID}),
    "kosmos-2": Recipe(
        prompt=(102, *(100,) * 4, 103),
        words={"<image>": 102, "</image>": 103},
        names={"boi_token": "<image>", "eoi_token": "</image>"},
        text_alone="text_model",
        scaled=_CALM_QUERIES,
        single=True,
    ),
    "kosmos-2.5": Recipe(
        {"vision_config": {"patch_embed_hidden_size": 48}},
        {"flattened_patches": (1, 16, 50)},
        prompt=(102, *(100,) * 4, 103),
        words={"<image>": 102, "</image>": 103},
        names={"image_start_token": "<image>", "image_end_token": "</image>"},
        scaled=_CALM_QUERIES,
        single=True,
    ),
    "lfm2_vl": Recipe(
        {"text_config": {"layer_types": ["conv", "full_attention"] * 2}},
        {"pixel_values": (1, 16, 48), "spatial_shapes": [[4, 4]], "pixel_attention_mask": [[1] * 16]},
    ),
    "llama4": Recipe({"vision_config": {"intermediate_size": 128}}),
    "llava_next_video": Recipe(
        {"image_grid_pinpoints": [[16, 16]]}, {"pixel_values": (1, 2, 3, 16, 16), "image_sizes": [[16, 16]]}
    ),
    "minicpm_ocr": Recipe(_MINICPM, _STRIP, videos=_FILM_STRIP),
    "minimax_m3_vl": Recipe(
        {
            "text_config": {
                "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
                "index_block_size": 4,
                "index_topk_blocks": 2,
            }
        }
    ),
    "minicpmv4_6": Recipe(_MINICPM, _STRIP, videos=_FILM_STRIP),
    "minicpmv4_7": Recipe(
        {**_MINICPM, "image_start_id": 102, "image_end_id": 103}, _STRIP, videos=_FILM_STRIP, apart=True
    ),
    "mllama": Recipe(per_row=True),
    "mistral4": Recipe(skipped="It takes text alone."),
    "molmo2": Recipe(
        {"adapter_config": {"vision_feature_layer": [1, 0]}, "vision_config": {"image_size": [16, 16]}},
        {
            "pixel_values": (1, 16, 48),
            "image_token_pooling": _QUARTERS,
            "image_grids": [[2, 2, 0, 0]],
            "image_num_crops": [1],
        },
        videos={
            "pixel_values_videos": (2, 16, 48),
            "video_token_pooling": [[start + index for index in quarter] for start in (0, 16) for quarter in _QUARTERS],
            "video_grids": [[2, 2, 2]],
        },
        filmed=(100,) * 8,
    ),
    "muse_glimmer": Recipe({"out_hidden_size": 128}),
    "muse_spark": Recipe(
        {
            "out_hidden_size": 128,
            "audio_config": {"patch_sizes": [2, 2], "hidden_sizes": [32, 32], "depths": [1, 1]},
        }
    ),
    "nemotron_h_omni": Recipe(
        {
            "image_token_id": 100,
            "text_config": {"mamba_num_heads": 8, "use_mamba_kernels": False},
            "vision_config": {"patch_dim": 48, "max_img_size": 32},
        },
        {"pixel_values": (16, 48), "image_grid_hw": [[4, 4]]},
        videos={"pixel_values_videos": (2, 3, 16, 16)},
    ),
    "ovis2": Recipe({"visual_indicator_token_ids": [106, 107, 108, 109, 110]}, prompt=(106, *(100,) * 16, 107)),
    "paddleocr_vl": Recipe(images=_PATCHES),
    "perception_lm": Recipe(skipped=_NEEDS_TIMM),
    "pix2struct": Recipe(
        {"vision_config": {"patch_embed_hidden_size": 48}},
        {"flattened_patches": (1, 16, 50)},
        prompt=(),
        text="decoder_input_ids",
        words={},
        single=True,
    ),
    "pp_chart2table": Recipe({"vision_config": {"image_size": 32}}, _LARGE),
    "pp_formulanet": Recipe(
        {"vision_config": {"image_size": 32}}, _LARGE, prompt=(), text="decoder_input_ids", words={}, single=True
    ),
    "qwen2_5_omni_thinker": Recipe(_START_END, videos=_TIMED_VIDEO),
    "qwen3_omni_moe_thinker": Recipe(_START_END, videos=_TIMED_VIDEO),
    "qwen3_5": Recipe({"text_config": {"layer_types": ["linear_attention", "full_attention"] * 2}}, apart=True),
    "qwen3_5_moe": Recipe(apart=True),
    "qwen3_vl": Recipe(apart=True),
    "qwen3_vl_moe": Recipe(apart=True),
    "qwen4_exp": Recipe(
        {
            "text_config": {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 8,
                "indexer_budget": 16,
                "indexer_compress_ratio": 4,
            }
        },
        apart=True,
    ),
    "smolvlm": Recipe(images=_TILES, words=_PLACEHOLDER, per_row=True),
    "step3p7": Recipe({"text_config": {"sliding_window": 16}}),
    "udop": Recipe({"decoder_start_token_id": 1}, prompt=(), words={}, scaled={"Attention.q.weight": 0.1}, single=True),
    "unlimited_ocr": Recipe({"vision_config": {"sam_config": _SAM}}, {"pixel_values": (1, 3, 64, 64)}),
    "video_llama_3": Recipe(
        images={"pixel_values": (16, 48), "image_grid_thw": GRID, "image_merge_sizes": [2]},
        videos={"pixel_values_videos": (32, 48), "video_grid_thw": [[2, 4, 4]], "video_merge_sizes": [2]},
    ),
    "vipllava": Recipe({"vision_feature_layer": [-1, -2]}),
    "vision-encoder-decoder": Recipe(prompt=(), text="decoder_input_ids", words={}, single=True),
    "diffusion_gemma": Recipe(skipped="It fills blocks by diffusion and has no autoregressive generate."),
    "evolla": Recipe(skipped="It reads proteins, not images."),
    "pi0": Recipe(skipped="It drives robots and has no generate."),
}
"""Recipes by model type; a type without one is built as its default config and its signature say."""
