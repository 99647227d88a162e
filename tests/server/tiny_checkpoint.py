"""A checkpoint directory for real server processes: a tiny llama with random weights and the default model's tokens."""

import copy
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

import griffin

# The size of the default model's vocabulary.
VOCABULARY = 49_152
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)


def write(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, context: int | None = None) -> Path:
    """Save the model into ``folder``, with the same weights each time. The server's model has the folder's name.

    Args:
        tokenizer: default: the default model's, with its chat template.
        context: the context length, if not that of CONFIG.
    """
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    config.vocab_size = max(VOCABULARY, len(tokenizer or ()))
    model = LlamaForCausalLM(config)
    model.config.max_position_embeddings = context or CONFIG.max_position_embeddings
    with torch.no_grad():
        # Larger weights than usual, so that the probabilities of tokens differ clearly.
        model.lm_head.weight.normal_(std=0.5)
    model.save_pretrained(folder)
    (tokenizer or griffin.load().tokenizer).save_pretrained(folder)
    return folder
