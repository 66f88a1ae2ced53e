"""SmolLM2 out of its GGUF file: config, weights and tokenizer, with one token added that stands for a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage.chat import TEMPLATE
from lvlm_guard.testbed.errors import TestbedError

IMAGE = "<image>"
CONTROL = 3
"""The type of a token that is no text, as GGUF numbers them."""

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""What a tensor of a block is called in the file, and in transformers."""


class LanguageFile:
    """A Llama in a GGUF file, opened.

    Raises:
        InputError: The package `gguf` is not installed.
        TestbedError: The file cannot be read, or holds another kind of model.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader  # noqa: PLC0415 - an extra
        except ImportError as problem:
            raise InputError(
                "the language model of the collage world is in a GGUF file, and the package that reads it is not "
                "installed. Install the extra: pip install 'lvlm-guard[collage]'"
            ) from problem
        try:
            self._reader: Any = GGUFReader(path)
            architecture = self.value("general.architecture")
        except Exception as problem:
            # The file comes from elsewhere: whatever its reader stumbles over ends here.
            raise TestbedError(
                f"{path} cannot be read as a GGUF file ({type(problem).__name__}: {problem}). Delete it and build again."
            ) from problem
        if architecture != "llama":
            raise TestbedError(f"{path} holds a model of kind {architecture!r}, where a Llama was expected.")

    def value(self, key: str) -> Any:
        """Return what the file says about its model under a key."""
        return self._reader.fields[key].contents()

    def config(self) -> LlamaConfig:
        """Return the shape of the language model, with room for the token that stands for a picture."""
        return LlamaConfig(
            vocab_size=len(self.value("tokenizer.ggml.tokens")) + 1,
            hidden_size=self.value("llama.embedding_length"),
            intermediate_size=self.value("llama.feed_forward_length"),
            num_hidden_layers=self.value("llama.block_count"),
            num_attention_heads=self.value("llama.attention.head_count"),
            num_key_value_heads=self.value("llama.attention.head_count_kv"),
            max_position_embeddings=self.value("llama.context_length"),
            rms_norm_eps=self.value("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=self.value("llama.rope.freq_base"),
            tie_word_embeddings=True,
            bos_token_id=self.value("tokenizer.ggml.bos_token_id"),
            eos_token_id=self.value("tokenizer.ggml.eos_token_id"),
            pad_token_id=self.value("tokenizer.ggml.padding_token_id"),
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the weights in fp32, by their names in a `LlamaModel`; the picture's token has an embedding of zeros."""
        heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
        weights = {}
        for tensor in self._reader.tensors:
            values = self._read(tensor)
            kind = tensor.name.split(".")[-2]
            if kind in heads:
                values = rotate_halves(values, self.value(heads[kind]))
            weights[_name(tensor.name)] = values
        words = weights["embed_tokens.weight"]
        weights["embed_tokens.weight"] = torch.cat((words, words.new_zeros(1, words.shape[1])))
        return weights

    def _read(self, tensor: Any) -> Tensor:
        from gguf import dequantize  # noqa: PLC0415 - an extra

        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer: bytes, single digits, the file's merges; the picture's token is the last."""
        words = self.value("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self.value("tokenizer.ggml.merges")]
        inner = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        inner.decoder = decoders.ByteLevel()
        types = self.value("tokenizer.ggml.token_type")
        special = [word for word, kind in zip(words, types, strict=True) if kind == CONTROL]
        inner.add_special_tokens([AddedToken(word, special=True) for word in (*special, IMAGE)])
        named = {
            f"{role}_token": words[self.value(f"tokenizer.ggml.{key}_token_id")]
            for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        }
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            additional_special_tokens=[IMAGE],
            model_input_names=["input_ids", "attention_mask"],
            padding_side="left",
            model_max_length=self.value("llama.context_length"),
            clean_up_tokenization_spaces=False,
            chat_template=TEMPLATE,
            **named,
        )


def _name(name: str) -> str:
    """Return what a tensor of the file is called in a `LlamaModel`."""
    unnumbered = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in unnumbered:
        return unnumbered[name]
    block, number, kind, suffix = name.split(".")
    if block != "blk" or kind not in NAMES:
        raise TestbedError(f"the GGUF file holds {name!r}, which is no part of the language model that was expected.")
    return f"layers.{number}.{NAMES[kind]}.{suffix}"


def rotate_halves(weight: Tensor, heads: int) -> Tensor:
    """Return a projection whose rotary pairs lie half a head apart, where the file has them side by side.

    Args:
        weight: Shape (heads * size, hidden).
        heads: How many heads it projects to.
    """
    size = weight.shape[0] // heads
    return weight.view(heads, size // 2, 2, -1).transpose(1, 2).reshape_as(weight)
