"""The family table against real module trees."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import griffin
from griffin.errors import UnsupportedModel
from griffin.model.families import FAMILIES, MULTIMODAL, feed_forwards, require_supported, text_part
from griffin.model.matrix.modules import takes_matrix
from tests.griffin import oracle
from tests.tiny import CONFIGS, tiny_model


def test_every_row_is_tested() -> None:
    """The tiny models have every type of the table."""
    assert set(CONFIGS) == set(FAMILIES)
    assert not set(MULTIMODAL) & set(FAMILIES)


def test_only_the_table_looks_up_a_model_type() -> None:
    """Other files may name a type in texts and reports, but never compare it."""
    package = Path(griffin.__file__).parent
    others = [file for file in package.rglob("*.py") if file != package / "model" / "families.py"]

    assert not [file for file in others if re.search(r"FAMILIES|model_type (==|!=|in|not in) ", file.read_text())]


def test_gated_families_have_a_common_block() -> None:
    """The block names the gate's function."""
    assert all(family.block for family in FAMILIES.values() if family.feed_forward.parts == 2)


def test_every_layer_is_found(model: PreTrainedModel) -> None:
    """No layer is skipped, and z is the input of the projection that the row names."""
    blocks = feed_forwards(model)

    assert [block.contract for block in blocks] == oracle.contracts(model)
    assert {block.width for block in blocks} == {52}


def test_contracting_projections_are_told_by_their_paths(model: PreTrainedModel) -> None:
    """Only they are found. Each can be a matrix, except GPT-2's own kind of projection."""
    names, contracting = FAMILIES[model.config.model_type].feed_forward, oracle.contracts(model)
    found = [module for path, module in model.named_modules() if names.is_contracting(path)]

    assert found == contracting
    assert all(takes_matrix(model, module) for module in found if not isinstance(module, Conv1D))
    assert takes_matrix(model, model.get_input_embeddings())
    assert not takes_matrix(model, model.get_submodule(names.layers))


@pytest.mark.parametrize("model_type", ["mixtral", "bert", "gemma3n", "no-such-type"])
def test_other_types_are_refused_with_the_list(model_type: str) -> None:
    """The error has its own class, and its text lists the supported types."""
    with pytest.raises(UnsupportedModel, match=r"'" + model_type + r"'.* is not supported; supported are: llama, mi"):
        require_supported({"model_type": model_type})


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "gemma3_text"),
        ({"model_type": "gemma3"}, "gemma3_text"),
        ({"model_type": "mistral3", "text_config": {"hidden_size": 32}}, "mistral"),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, "mistral"),
    ],
)
def test_the_text_part_of_a_multimodal_model_counts(config: dict[str, object], wanted: str) -> None:
    """The row is that of the text part's type."""
    assert require_supported(config) is FAMILIES[wanted]
    assert text_part(config) is MULTIMODAL[str(config["model_type"])]


def test_another_text_part_is_refused() -> None:
    """The error names the text part's type."""
    with pytest.raises(UnsupportedModel, match="'mixtral'"):
        require_supported({"model_type": "mistral3", "text_config": {"model_type": "mixtral"}})


@pytest.mark.parametrize("missing", ["llama_4_scaling_beta", "original_max_position_embeddings"])
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_numbers_of_a_single_family_must_be_there(name: str, missing: str) -> None:
    """Without them, the model's own code fails or uses another model's numbers."""
    rope = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}
    require_supported({"model_type": "ministral3", name: rope})
    del rope[missing]
    with pytest.raises(UnsupportedModel, match=f"'ministral3' models need {missing}"):
        require_supported({"model_type": "ministral3", name: rope})


def test_mixture_of_experts_is_called_by_name() -> None:
    """The error says that it is a mixture of experts, not an unknown dense model."""
    config = AutoConfig.for_model(
        "mixtral", hidden_size=32, intermediate_size=52, num_hidden_layers=1, num_attention_heads=4, vocab_size=128
    )
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        feed_forwards(AutoModelForCausalLM.from_config(config))


def test_quantised_weights_are_refused() -> None:
    """Without their scales, the rows would be another model."""
    model = tiny_model("llama").requires_grad_(False)
    projection = model.model.layers[2].mlp.up_proj
    projection.weight.data = projection.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModel, match="float8_e4m3fn"):
        feed_forwards(model)


def test_unexpected_modules_are_refused() -> None:
    """A known model type whose projections are missing or different is refused."""
    model = tiny_model("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(UnsupportedModel, match="down_proj"):
        feed_forwards(model)
