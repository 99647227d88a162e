"""A GGUF file's tensors become a model's parameters, dequantised one by one."""

from collections.abc import Mapping

import gguf
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.errors import LoadError
from griffin.model.checkpoint.built import assembled, empty_model
from griffin.model.checkpoint.gguf_config import config_of
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_rope import ROPE_TENSORS
from griffin.model.checkpoint.refusals import listed

# Tensors that are not needed: the configuration says the same, or every reader computes it.
USELESS = (*ROPE_TENSORS, "rope.freqs")
USELESS_ENDINGS = (".attn_rot_embd.weight", ".attn_rot_embd", ".attn.bias", ".attn.masked_bias")
# Matrices whose rows belong to outputs in the file, and to inputs in transformers' GPT-2.
TRANSPOSED_ENDINGS = (".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")


def read_model(file: GgufFile, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a file, with the file's own values rounded to ``dtype``.

    Raises:
        UnsupportedModel, LoadError: see ``config_of``; or a tensor is missing, has another shape, cannot be read, or
            belongs to no parameter. Names the first few.
    """
    config = config_of(file)
    names = parameter_names(file, empty_model(config))
    tensors = tqdm(names.items(), desc=f"dequantising {file.path.name}", disable=None)
    state = {parameter: plain(file, name, config).to(dtype).contiguous() for name, parameter in tensors}
    return assembled(file.path.name, config, state, dtype)


def parameter_names(file: GgufFile, empty: PreTrainedModel) -> dict[str, str]:
    """The parameter of each of a file's tensors, by gguf's own table of names.

    Raises:
        LoadError: a tensor belongs to no parameter, or has another shape than its own. Names the first few.
    """
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = gguf.get_tensor_name_map(architecture, empty.config.num_hidden_layers)
    found: dict[str, str] = {}
    parameters = empty.state_dict()
    for parameter in parameters:
        path, _, ending = parameter.rpartition(".")
        name = table.get_name(path)
        if name is not None:
            found[f"{name}.{ending}"] = parameter
    if strange := [name for name in file.tensors if name not in found and not _useless(name)]:
        raise LoadError(
            f"{file.path.name} has {len(strange)} tensors that no parameter of such a model takes: {listed(strange)}; "
            "general.architecture names the wrong kind of model"
        )
    names = {name: found[name] for name in file.tensors if name in found}
    _require_shapes(file, {name: parameters[parameter].shape for name, parameter in names.items()})
    return names


def _require_shapes(file: GgufFile, wanted: Mapping[str, torch.Size]) -> None:
    """Before anything is built: memory of a size that only a key claims would be taken.

    Args:
        wanted: the shape of each tensor's parameter.
    """
    strange = []
    for name, shape in wanted.items():
        in_file = file.tensors[name].shape
        trained = in_file[::-1] if _is_transposed(file.architecture, name) else in_file
        if trained != tuple(shape):
            strange.append(f"{name} {trained} instead of {tuple(shape)}")
    if strange:
        raise LoadError(
            f"{file.path.name} has tensors of another shape than its keys say: {listed(strange)}; "
            "download or convert it again"
        )


def plain(file: GgufFile, name: str, config: PreTrainedConfig) -> Tensor:
    """A tensor's values as the model was trained with them, fp32.

    Raises:
        LoadError: it cannot be read.
    """
    tensor = file.tensors[name]
    try:
        with np.errstate(all="ignore"):
            # What comes out infinite or as no number is refused later, by name.
            values = gguf.dequantize(tensor.data, tensor.type)
    except Exception as error:
        # A type that the reader knows only by name, or data that is cut short.
        raise LoadError(f"{file.path.name}: tensor {name} ({tensor.type.name}) cannot be read: {error}") from error
    # Copied: mapped values cannot be written to, and the file may change.
    own = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    return as_trained(file.architecture, name, own, config)


def as_trained(architecture: str, name: str, values: Tensor, config: PreTrainedConfig) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor beside renaming it (conversion/*.py)."""
    if architecture == "llama" and ".attn_q." in name:
        return _half_rotated(values, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        return _half_rotated(values, config.num_key_value_heads)
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return values - 1
    if _is_transposed(architecture, name):
        return values.t()
    if architecture == "falcon" and ".attn_qkv." in name:
        return _grouped(values, config)
    return values


def _is_transposed(architecture: str, name: str) -> bool:
    return architecture == "gpt2" and name.endswith(TRANSPOSED_ENDINGS)


def _half_rotated(values: Tensor, heads: int) -> Tensor:
    """Reorder rows: llama.cpp rotates neighbours in pairs, transformers the two halves of a head."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _grouped(values: Tensor, config: PreTrainedConfig) -> Tensor:
    """Reorder rows from all queries, keys, values to groups: the queries that share a key and a value, then these."""
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    head = config.hidden_size // config.num_attention_heads
    queries, keys, vals = torch.split(values, [config.num_attention_heads * head, groups * head, groups * head])
    parts = [part.reshape(groups, -1, *values.shape[1:]) for part in (queries, keys, vals)]
    return torch.cat(parts, dim=1).reshape(values.shape)


def _useless(name: str) -> bool:
    return name in USELESS or name.endswith(USELESS_ENDINGS)
