"""Parameter counts against the paper's, on real configurations without weights."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from griffin.accounting import Accounting
from griffin.loading import Checkpoint
from griffin.selection import kept_count

LLAMA_2_13B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 40, "num_attention_heads": 40, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA_7B = {
    "model_type": "gemma", "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
}  # fmt: skip


@pytest.mark.parametrize(("shape", "total", "active"), [(LLAMA_2_13B, 13.0, 8.8), (GEMMA_7B, 8.5, 5.4)])
def test_active_parameters_of_the_paper(shape: dict[str, object], total: float, active: float) -> None:
    """At 50 % Llama 2 13B uses 8.8 of 13 billion parameters, Gemma 7B 5.4 of 8.5 (paper, 4.2)."""
    with torch.device("meta"):
        accounting = Accounting.of(AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)))

    assert round(accounting.total / 1e9, 1) == total
    assert round(accounting.active(kept_count(accounting.width, 0.5)) / 1e9, 1) == active


def test_smollm2(smollm2: Checkpoint) -> None:
    """The embedded model's counts, to the parameter."""
    accounting = Accounting.of(smollm2.model)

    assert (accounting.total, accounting.active(768)) == (134_515_008, 94_701_888)
    assert accounting.neurons == 30 * 1536


def test_every_family_counts_what_its_block_holds(model: PreTrainedModel) -> None:
    """Keeping all neurons is the whole model; a neuron's share is its rows, their biases and its column."""
    accounting = Accounting.of(model)

    assert accounting.active(accounting.width) == accounting.total
    assert accounting.active(0) == accounting.total - accounting.feed_forward
    gated = model.config.model_type not in ("opt", "gpt_neox", "gpt2", "phi", "gptj", "falcon")
    biased = model.config.model_type in ("llama", "opt", "gpt_neox", "gpt2", "phi", "gptj", "falcon")
    assert accounting.per_neuron == 32 * (2 + gated) + biased * (1 + gated)
