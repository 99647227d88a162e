"""A GGUF file's tensors become a model's parameters, dequantised one by one."""

from collections.abc import Callable, Iterator

import gguf
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_config import config_of
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_rope import ROPE_TENSORS
from griffin.model.checkpoint.quiet import quiet
from griffin.model.checkpoint.refusals import listed
from griffin.model.checkpoint.whole import require_whole

Undo = Callable[[Tensor, PreTrainedConfig], Tensor]

# Tensors that are not needed: the configuration says the same, or every reader computes it.
USELESS = (*ROPE_TENSORS, "rope.freqs")
USELESS_ENDINGS = (".attn_rot_embd.weight", ".attn_rot_embd", ".attn.bias", ".attn.masked_bias")


def read_model(file: GgufFile, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a file, with the file's own values rounded to ``dtype``.

    Raises:
        UnsupportedModel, LoadError: see ``config_of``; or a tensor is missing, has another shape, cannot be read, or
            belongs to no parameter. Names the first few.
    """
    config = config_of(file)
    names = parameter_names(file, config)
    strange = [name for name in file.tensors if name not in names and not _useless(name)]
    if strange:
        raise LoadError(
            f"{file.path.name} has {len(strange)} tensors that no parameter of such a model takes: {listed(strange)}; "
            "it is another kind of model than its general.architecture says"
        )
    state = dict(_parameters(file, config, names, dtype))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with quiet():
        model, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    require_whole(report, file.path.name)
    assert isinstance(model, PreTrainedModel)
    return model


def parameter_names(file: GgufFile, config: PreTrainedConfig) -> dict[str, str]:
    """The parameter of each of a file's tensors, by gguf's own table of names."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    found: dict[str, str] = {}
    for parameter in empty.state_dict():
        path, _, ending = parameter.rpartition(".")
        name = table.get_name(path)
        if name is not None:
            found[f"{name}.{ending}"] = parameter
    return found


def _parameters(
    file: GgufFile, config: PreTrainedConfig, names: dict[str, str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    wanted = {name: tensor for name, tensor in file.tensors.items() if name in names}
    for name, tensor in tqdm(wanted.items(), desc=f"dequantising {file.path.name}", disable=None):
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except Exception as error:
            # A type that the reader knows only by name, or data that is cut short.
            raise LoadError(
                f"{file.path.name}: tensor {name} ({tensor.tensor_type.name}) cannot be read: {error}"
            ) from error
        # Copied: mapped values cannot be written to, and the file may change.
        plain = _as_trained(
            file.architecture, name, torch.from_numpy(np.require(values, requirements=["C", "W"])), config
        )
        yield names[name], plain.to(dtype).contiguous()


def _as_trained(architecture: str, name: str, values: Tensor, config: PreTrainedConfig) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor beside renaming it (conversion/*.py)."""
    if architecture == "llama" and ".attn_q." in name:
        return _half_rotated(values, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        return _half_rotated(values, config.num_key_value_heads)
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return values - 1
    if architecture == "gpt2" and name.endswith(
        (".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")
    ):
        return values.t()
    if architecture == "falcon" and ".attn_qkv." in name:
        return _grouped(values, config)
    return values


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
