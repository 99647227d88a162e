"""Small GGUF files of tiny models, as llama.cpp's converter writes them, and model directories to damage."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.griffin.model.quantised import HALVES, mixed_kind, sized_tensor
from tests.tiny import tiny_model

# Every byte is a token; then two pairs of bytes; then control tokens.
BYTES = list(bytes_to_unicode().values())
CONTROL = ["<|endoftext|>", "<|im_end|>", "<eot>", "<other>"]
TOKENS = [*BYTES, "th", "he", *CONTROL]
VOCABULARY = len(TOKENS)
FIRST_CONTROL = VOCABULARY - len(CONTROL)
EOS = TOKENS.index("<|im_end|>")

ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "gpt2": "gpt2", "falcon": "falcon",
}  # fmt: skip

Meta = Callable[[GGUFWriter], None]


def text_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny model with a row for each of the file's tokens. Its norms are not all ones."""
    model = tiny_model(model_type, **{"vocab_size": VOCABULARY, "eos_token_id": EOS, **changes})
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    meta: Meta = lambda writer: None,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    extra: Mapping[str, Tensor] | None = None,
    kind: Callable[[str], GGMLQuantizationType | None] = lambda name: None,
) -> Path:
    """Write a model to a GGUF file.

    Args:
        meta: adds keys; they replace those that are written here.
        keep: whether a tensor is written, by its name in the file.
        extra: additional tensors.
        kind: the type of a tensor by its name in the file; None is F32. A quantised tensor gets random codes.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    _write_sizes(writer, architecture, config)
    _write_tokens(writer)
    meta(writer)
    tensors = {name: value for name, value in _tensors(model, architecture) if keep(name)}
    for name, value in {**tensors, **(extra or {})}.items():
        _write_tensor(writer, name, value.detach().float().contiguous(), kind(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tensor(writer: GGUFWriter, name: str, value: Tensor, kind: GGMLQuantizationType | None) -> None:
    if kind in HALVES:
        seed = zlib.crc32(name.encode())
        writer.add_tensor(
            name, sized_tensor(kind, *value.shape, deviation=float(value.std()), seed=seed), raw_dtype=kind
        )
    elif kind == GGMLQuantizationType.BF16:
        halves = value.bfloat16().view(torch.uint8).numpy()
        writer.add_tensor(name, halves, raw_dtype=kind)
    else:
        writer.add_tensor(name, value.numpy().astype(np.float16 if kind == GGMLQuantizationType.F16 else np.float32))


def mixed_file(path: Path, model_type: str) -> Path:
    """A small file of a llama or qwen2 model, with matrices of every type that is read in place."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
    more = {"mlp_bias": False} if model_type == "llama" else {}
    model = text_model(model_type, **sizes, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            # Sums have eight times as many numbers as in other tiny models; this keeps them as small.
            parameter *= 0.35 if parameter.dim() == 2 else 1
    return write_gguf(path, model, kind=mixed_kind)


def _write_sizes(writer: GGUFWriter, architecture: str, config: Any) -> None:
    writer.add_context_length(2048 if architecture == "falcon" else config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    feed_forward = {"gpt2": "n_inner", "falcon": "ffn_hidden_size"}.get(architecture, "intermediate_size")
    writer.add_feed_forward_length(getattr(config, feed_forward))
    if architecture in ("gpt2", "falcon"):
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "falcon":
        writer.add_tensor_data_layout("jploski")
        writer.add_head_count_kv(config.num_kv_heads if config.new_decoder_architecture else 1)
    elif architecture != "gpt2":
        writer.add_head_count_kv(config.num_key_value_heads)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
    if architecture in ("llama", "qwen3", "gemma2", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        share = config.rope_parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * config.hidden_size) // config.num_attention_heads)
    rope = getattr(config, "rope_parameters", None) or {}
    theta = rope.get("full_attention", rope).get("rope_theta")
    if theta and architecture not in ("gemma2", "falcon"):
        writer.add_rope_freq_base(theta)


def _write_tokens(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * FIRST_CONTROL + [3] * len(CONTROL))
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(FIRST_CONTROL)
    writer.add_eos_token_id(EOS)


def _tensors(model: PreTrainedModel, architecture: str) -> Iterable[tuple[str, Tensor]]:
    config = model.config
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, config.num_hidden_layers)
    for parameter, value in model.state_dict().items():
        path, _, ending = parameter.rpartition(".")
        if parameter == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = f"{names.get_name(path)}.{ending}"
        if architecture == "llama" and ".attn_q." in name:
            value = _interleaved(value, config.num_attention_heads)
        elif architecture == "llama" and ".attn_k." in name:
            value = _interleaved(value, config.num_key_value_heads)
        elif architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            value = value + 1
        elif architecture == "gpt2" and parameter.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            value = value.t()
        elif architecture == "falcon" and "query_key_value" in parameter:
            value = _regrouped(value, config)
        yield name, value


def _interleaved(value: Tensor, heads: int) -> Tensor:
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)


def _regrouped(value: Tensor, config: Any) -> Tensor:
    heads, groups = config.num_attention_heads, config.num_kv_heads if config.new_decoder_architecture else 1
    parts = value.reshape(groups, heads // groups + 2, config.hidden_size // heads, -1)
    split = [parts[:, :-2], parts[:, [-2]], parts[:, [-1]]]
    return torch.cat([part.reshape(-1, value.shape[1]) for part in split])


def write_directory(folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Path:
    """A tiny llama in a directory as on a hub, with a row for each of the tokenizer's tokens."""
    tiny_model("llama", **{"vocab_size": len(tokenizer), **changes}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Rewrite the weights of a directory."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Rewrite the configuration of a directory."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder
