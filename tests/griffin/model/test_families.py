"""The family table against real module trees."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from griffin.errors import UnsupportedModel
from griffin.model.families import FAMILIES, feed_forwards, require_supported
from tests.griffin import oracle
from tests.tiny import CONFIGS, tiny_model


def test_every_row_is_tested() -> None:
    """The tiny models cover the table."""
    assert set(CONFIGS) == set(FAMILIES)


def test_every_layer_is_found(model: PreTrainedModel) -> None:
    """No layer is skipped, and z is the input of the projection that the row names."""
    blocks = feed_forwards(model)

    assert [block.contract for block in blocks] == oracle.contracts(model)
    assert {block.width for block in blocks} == {52}


@pytest.mark.parametrize("model_type", ["mixtral", "bert", "gemma3", "no-such-type"])
def test_other_types_are_refused_with_the_list(model_type: str) -> None:
    """The error has a name, and its text says what is supported."""
    with pytest.raises(UnsupportedModel, match=r"'" + model_type + r"'.* is not supported; supported are: llama, mi"):
        require_supported({"model_type": model_type})


def test_mixture_of_experts_is_called_by_name() -> None:
    """A MoE is told from an unknown dense model."""
    config = AutoConfig.for_model(
        "mixtral", hidden_size=32, intermediate_size=52, num_hidden_layers=1, num_attention_heads=4, vocab_size=128
    )
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        feed_forwards(AutoModelForCausalLM.from_config(config))


def test_quantised_weights_are_refused() -> None:
    """Rows without their scales would be another model."""
    model = tiny_model("llama").requires_grad_(False)
    projection = model.model.layers[2].mlp.up_proj
    projection.weight.data = projection.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModel, match="float8_e4m3fn"):
        feed_forwards(model)


def test_unexpected_modules_are_refused() -> None:
    """A known model type with something else in the projections' place is not guessed at."""
    model = tiny_model("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(UnsupportedModel, match="down_proj"):
        feed_forwards(model)
