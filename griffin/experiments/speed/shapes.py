"""Shapes: named configurations whose weights are random. Speed does not depend on the values of weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from griffin.errors import LoadError
from griffin.model.checkpoint.text_part import served_config
from griffin.model.families import require_supported

LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}

# The values are those in the config.json of each checkpoint.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        **LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "llama-2-13b": {
        **LLAMA, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
    "gemma-7b": {
        "model_type": "gemma", "vocab_size": 256000, "max_position_embeddings": 8192, "hidden_size": 3072,
        "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256,
    },
    "mistral-7b": {
        "model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "opt-6.7b": {
        **OPT, "hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "opt-13b": {
        **OPT, "hidden_size": 5120, "word_embed_proj_dim": 5120, "ffn_dim": 20480, "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama-3-8b": {
        "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "llama-1.1b": {
        **LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49152, "max_position_embeddings": 8192, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def shape_config(name: str) -> PreTrainedConfig:
    """The configuration of a named shape, or of a ``config.json``.

    Raises:
        LoadError: neither the name of a shape nor a readable ``config.json``.
        UnsupportedModel: the model type in the file is not supported.
    """
    if name in SHAPES:
        return AutoConfig.for_model(**SHAPES[name])
    path = Path(name)
    if not path.is_file():
        raise LoadError(f"unknown shape '{name}'; use the path of a config.json, or one of: {', '.join(SHAPES)}")
    try:
        require_supported(PreTrainedConfig.get_config_dict(path)[0])
        return served_config(path)[0]
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read '{name}' as a config.json: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def random_model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of that shape. It is made on the device itself, so that memory never holds a second copy."""
    # Not on the meta device: modules compute their buffers (rotary frequencies) when they are made.
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(shape_config(name), dtype=dtype)
    # no_init_weights skips this too.
    model.tie_weights()
    _fill_(model)
    return model.eval().requires_grad_(False)


def _fill_(model: nn.Module) -> None:
    """Fill matrices with small random numbers, norms with 1 and biases with 0. Logits stay finite at any depth."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
