"""Builds a model from parameters, and from matrices that replace its projections one after the other."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from griffin.model.checkpoint.quiet import quiet
from griffin.model.checkpoint.whole import require_whole
from griffin.model.exact import keep_exact_
from griffin.model.families import has_common_block
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import put_
from griffin.model.matrix.native import library


def obstacle(model_type: str) -> str | None:
    """Why models of a supported type cannot hold codes; None if they can."""
    if library() is None:
        return "the compiled part is not installed"
    if not has_common_block(model_type):
        return f"a '{model_type}' model has no common block"
    return None


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model without weights."""
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return empty


def assembled(source: str, config: PreTrainedConfig, state: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """A model with these parameters. None may be missing.

    Args:
        source: the checkpoint, for errors.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with quiet():
        model, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    require_whole(report, source)
    assert isinstance(model, PreTrainedModel)
    return model


def with_matrices(
    source: str,
    config: PreTrainedConfig,
    shapes: Mapping[str, Sequence[int]],
    matrices: Iterable[tuple[str, Matrix, bool]],
    small: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """A model that holds matrices unchanged. All other parameters are small, and stay fp32 beside the model's dtype.

    Args:
        source: the checkpoint, for errors.
            shapes: by name, of the parameters that matrices replace.
            matrices: the path of a module, its matrix, and whether the rows belong to inputs. They are requested one
                by one, after the model is built.
        small: all other parameters, fp32.
        dtype: of activations, and of the model's own parameters.

    Raises:
        LoadError: a parameter is missing.
    """
    # Placeholders without memory, until modules with matrices replace them.
    state = {name: torch.zeros((), dtype=dtype).expand(*shape) for name, shape in shapes.items()}
    state |= {name: values.to(dtype).contiguous() for name, values in small.items()}
    model = assembled(source, config, state, dtype)
    for path, matrix, by_input in matrices:
        put_(model, path, matrix, by_input=by_input)
    for name, values in small.items():
        path, _, ending = name.rpartition(".")
        keep_exact_(model.get_submodule(path), ending, values)
    return model
