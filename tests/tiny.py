"""Models of every supported type, small enough to build in milliseconds, with random weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from griffin.model.families import FAMILIES

COMMON = {"vocab_size": 128, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {"hidden_size": 32, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = {**WIDTHS, "num_key_value_heads": 2, "head_dim": 8}
# The window is shorter than the tests' prompts, so that the masks of sliding layers matter.
SLIDING = {**GATED, "sliding_window": 8}
BY_LAYER = {**SLIDING, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
# The original context is also shorter than the tests' prompts, so that queries are scaled up.
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 51.2, "original_max_position_embeddings": 5}
GPT = {"n_embd": 32, "n_inner": 52, "n_layer": 3, "n_head": 4, "n_positions": 256}

CONFIGS: dict[str, dict[str, object]] = {
    "llama": {**GATED, "mlp_bias": True},
    "mistral": SLIDING,
    "ministral3": {
        **SLIDING,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "gemma": GATED,
    "gemma2": SLIDING,
    "gemma3_text": BY_LAYER,
    "qwen2": {**GATED, "tie_word_embeddings": True},
    "qwen3": GATED,
    "olmo2": GATED,
    "olmo3": {
        **BY_LAYER,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "smollm3": {**BY_LAYER, "no_rope_layers": [1, 0, 1]},
    "granite": {
        **GATED, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
        "logits_scaling": 6.0,
    },
    "phi3": SLIDING,
    "opt": {**WIDTHS, "ffn_dim": 52, "word_embed_proj_dim": 32},
    "gpt_neox": {**WIDTHS, "rotary_pct": 0.5},
    "gpt2": GPT,
    "phi": {**WIDTHS, "partial_rotary_factor": 0.5},
    "gptj": {**GPT, "rotary_dim": 4},
    "falcon": {**WIDTHS, "ffn_hidden_size": 52, "alibi": False, "bias": True, "new_decoder_architecture": False},
}  # fmt: skip

# Types whose decoder block has the common form, which every step decodes.
COMMON_BLOCK = [model_type for model_type, family in FAMILIES.items() if family.block is not None]


def tiny_model(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model whose weights depend on the seed only. They are larger than usual, so that logits differ well."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **CONFIGS[model_type], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
        if config.pad_token_id is not None:
            embedding = model.get_input_embeddings()
            embedding.weight[0] = 0
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model
