"""The configuration that a GGUF file's keys describe, in the terms of transformers.

Each architecture is a row. Keys that no row knows are refused by name, because they may change the computation.
The meaning of keys: llama.cpp's converter (conversion/) and model definitions (src/models/), llama-cpp-python 0.3.36.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from griffin.errors import LoadError, UnsupportedModel
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_rope import DEFAULT_ROPE_BASE, ROPE_KEYS, ROPE_TENSORS, Fields, rotary
from griffin.model.checkpoint.gguf_values import number, positive, refused, require_equal, short, size, tokens

SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
CHECKED = {"attention.key_length", "attention.value_length", "attention.causal", "pooling_type", "vocab_size"}
# Keys that change nothing, whatever their value.
SILENT = {"rope.scaling.finetuned", "expert_used_count"}
# Keys that change nothing if they are zero, false or empty.
SILENT_WHEN_ZERO = {
    "expert_count", "expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "logit_scale",
    "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
    "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip
# Values that a file recommends under general.sampling, with the names of transformers.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
TENSOR_LAYOUTS = ("Meta AI original pth", "jploski")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture of llama.cpp: its name in transformers, and the meaning of its keys.

    model_type: the type in transformers.
    keys: from key (without the architecture's name) to the configuration's field.
    more: computes further fields.
    reads: further keys that ``more`` reads.
    biases: a field turns on a bias in the file (q of attention, gate of the FF block).
    rotary: the part of a head that rotates with its position.
    fixed_head_size: the head size is always the width over the number of heads; the configuration has no field for it.
    divided_width: the number of heads must divide the width, whatever the head size is.
    rope_tensors: tensors of frequencies that such files may contain.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: SIZES | RMS)
    more: Callable[[GgufFile, Fields], Fields] = lambda file, fields: {}
    reads: frozenset[str] = frozenset()
    biases: bool = False
    rotary: Literal["all", "part", "none"] = "all"
    fixed_head_size: bool = False
    divided_width: bool = True
    rope_tensors: Collection[str] = ()


def _windowed_by_layer(file: GgufFile, fields: Fields, period: int) -> Fields:
    """Layer types: every ``period``-th layer attends to all tokens, unless the file says otherwise."""
    window, layers = file.own("attention.sliding_window"), fields["num_hidden_layers"]
    window = window and size(file, "attention.sliding_window")
    pattern = file.own("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        pattern = size(file, "attention.sliding_window_pattern")
    if not window:
        sliding = [False] * layers
    elif isinstance(pattern, list):
        sliding = [bool(value) for value in pattern]
    else:
        sliding = [(number + 1) % int(pattern or period) != 0 for number in range(layers)]
    if len(sliding) != layers:
        raise refused(file, "attention.sliding_window_pattern", f"names {len(sliding)} layers of {layers}")
    kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return {"sliding_window": window or fields["max_position_embeddings"], "layer_types": kinds}


def _gemma_scale(file: GgufFile, fields: Fields, large: int) -> Fields:
    # No key says it. llama.cpp also uses the number of layers: only the 27B models have this number.
    heads, layers = fields["num_attention_heads"], fields["num_hidden_layers"]
    return {"query_pre_attn_scalar": fields["hidden_size"] // heads if layers == large else fields["head_dim"]}


def _gemma2(file: GgufFile, fields: Fields) -> Fields:
    caps = {
        f"{place}_logit_softcapping": default if (value := file.own(f"{place}_logit_softcapping")) is None else value
        for place, default in (("attn", 50.0), ("final", 30.0))
    }
    if not file.own("attention.sliding_window"):
        raise refused(file, "attention.sliding_window", "is missing, and this model needs it")
    for place in ("attn", "final"):
        positive(file, f"{place}_logit_softcapping")
    return {**_windowed_by_layer(file, fields, 2), **_gemma_scale(file, fields, 46), **caps}


def _gemma3(file: GgufFile, fields: Fields) -> Fields:
    # Zero means that there is none.
    cap = file.own("final_logit_softcapping") and positive(file, "final_logit_softcapping")
    local = {"rope_type": "default", "rope_theta": positive(file, "rope.freq_base_swa") or DEFAULT_ROPE_BASE}
    rope = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    more = {"final_logit_softcapping": cap or None, "rope_parameters": rope}
    return {**_windowed_by_layer(file, fields, 6), **_gemma_scale(file, fields, 62), **more}


def _phi3(file: GgufFile, fields: Fields) -> Fields:
    original = tokens(file, "rope.scaling.original_context_length") or fields["max_position_embeddings"]
    window = file.own("attention.sliding_window")
    return {
        "sliding_window": size(file, "attention.sliding_window") if window else None,
        "original_max_position_embeddings": original,
    }


def _falcon(file: GgufFile, fields: Fields) -> Fields:
    heads = fields["num_kv_heads"]
    # Falcon's large models have a norm for each of the two parallel branches; Falcon 11B has one for both.
    two_norms = "blk.0.attn_norm_2.weight" in file.tensors
    return {
        "multi_query": heads == 1,
        "new_decoder_architecture": heads != 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "ffn_hidden_size": size(file, "feed_forward_length"),
    }


LAYER_NORM = "attention.layer_norm_epsilon"
WINDOW_KEYS = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", biases=True, rope_tensors=ROPE_TENSORS),
    "qwen2": Architecture("qwen2", fixed_head_size=True),
    "qwen3": Architecture("qwen3", divided_width=False),
    "gemma2": Architecture(
        "gemma2",
        more=_gemma2,
        reads=WINDOW_KEYS | {"attn_logit_softcapping", "final_logit_softcapping"},
    ),
    "gemma3": Architecture(
        "gemma3_text",
        more=_gemma3,
        reads=WINDOW_KEYS | {"rope.freq_base_swa", "final_logit_softcapping"},
    ),
    "phi3": Architecture(
        "phi3",
        more=_phi3,
        reads=frozenset({"attention.sliding_window"}),
        rotary="part",
        rope_tensors=ROPE_TENSORS[1:],
    ),
    "gpt2": Architecture(
        "gpt2",
        keys={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            LAYER_NORM: "layer_norm_epsilon",
        },
        rotary="none",
    ),
    "falcon": Architecture(
        "falcon",
        keys={
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_kv_heads",
            LAYER_NORM: "layer_norm_epsilon",
        },
        more=_falcon,
        reads=frozenset({"feed_forward_length", "tensor_data_layout"}),
        fixed_head_size=True,
    ),
}  # fmt: skip


def config_of(file: GgufFile) -> PreTrainedConfig:
    """The configuration of a file's model.

    Raises:
        UnsupportedModel: the architecture has no row, or the model does not generate text.
        LoadError: a key that no row knows, or a value that no model can have; names the key.
    """
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF files of architecture '{file.architecture}' are not supported; supported are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    row = ARCHITECTURES[file.architecture]
    _require_text_generation(file)
    _require_known_keys(file, row)
    fields: Fields = {name: _value(file, key) for key, name in row.keys.items()}
    if "attention.head_count_kv" in row.keys and fields[row.keys["attention.head_count_kv"]] is None:
        fields[row.keys["attention.head_count_kv"]] = fields["num_attention_heads"]
    absent = [key for key, name in row.keys.items() if fields[name] is None]
    if absent:
        raise LoadError(f"{file.path.name} lacks the key {file.architecture}.{absent[0]}")
    if strange := [name for name in ROPE_TENSORS if name in file.tensors and name not in row.rope_tensors]:
        raise LoadError(f"{file.path.name} has a tensor that such models do not use: {strange[0]}")
    _require_blocks(file, fields[row.keys["block_count"]])
    heads, width = (fields[row.keys[key]] for key in ("attention.head_count", "embedding_length"))
    groups = fields[row.keys["attention.head_count_kv"]] if "attention.head_count_kv" in row.keys else heads
    divided = row.divided_width or file.own("attention.key_length") is None
    _require_heads(file, heads, groups, width, divided=divided)
    fields |= _common(file, fields, row, width // heads)
    fields |= row.more(file, fields)
    return AutoConfig.for_model(row.model_type, **fields)


def settle_sampling(model: PreTrainedModel, file: GgufFile) -> None:
    """Write the file's recommended sampling values into the model's generation_config."""
    recommended = {name: file.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    given = {name: value for name, value in recommended.items() if value is not None}
    if given and model.generation_config is not None:
        # transformers refuses to write such values when nothing is sampled.
        model.generation_config.update(do_sample=True, **given)


def _common(file: GgufFile, fields: Fields, row: Architecture, width: int) -> Fields:
    """Fields of every architecture. width: of the model, over its heads."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise LoadError(f"{file.path.name} lacks 1 of the model's weights: token_embd.weight")
    ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    rows = embedding.shape[0]
    require_equal(file, "vocab_size", rows)
    tokens = len(file.metadata.get("tokenizer.ggml.tokens") or ())
    for name, id in ids.items():
        if id is not None and not (isinstance(id, int) and 0 <= id < max(rows, tokens)):
            raise LoadError(f"{file.path.name}: its {name} is {short(id)}, and there are {rows} tokens")
    common: Fields = {
        **ids,
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "architectures": None,
    }
    if row.rotary == "none":
        if rotated := [key for key in ROPE_KEYS if file.own(key) is not None]:
            raise refused(file, rotated[0], "is set, but such models have no rotary positions")
        _require_head_size(file, width)
        return common
    head = size(file, "attention.key_length") or size(file, "rope.dimension_count") or width
    if row.rotary == "part":
        head = width
    _require_head_size(file, head)
    if row.fixed_head_size and head != width:
        key = "rope.dimension_count" if file.own("attention.key_length") is None else "attention.key_length"
        raise refused(file, key, f"is {head}, but such models have {width}")
    if not row.fixed_head_size:
        common["head_dim"] = head
    if row.biases:
        common["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        common["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    common["rope_parameters"] = rotary(file, fields["max_position_embeddings"], head, partial=row.rotary == "part")
    return common


def _require_blocks(file: GgufFile, blocks: int) -> None:
    """Refuse more blocks than the file has tensors for, so that nothing is built whose size is only claimed."""
    found = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if blocks > len(found):
        raise refused(file, "block_count", f"is {blocks}, and the file has tensors of {len(found)} blocks")


def _value(file: GgufFile, key: str) -> Any:
    """The value of a row's key; see ``number``, ``size`` and ``tokens``."""
    if key.endswith("epsilon"):
        return number(file, key, most=1)
    return tokens(file, key) if key == "context_length" else size(file, key)


def _require_head_size(file: GgufFile, head: int) -> None:
    for key in ("attention.key_length", "attention.value_length"):
        require_equal(file, key, head)


def _require_heads(file: GgufFile, heads: int, groups: int, width: int, *, divided: bool) -> None:
    """Refuse impossible numbers of heads: the error of transformers would not name the key.

    Args:
        groups: number of heads of keys and values.
        divided: the number of heads must divide the width.
    """
    if heads > width or (divided and width % heads):
        raise refused(file, "attention.head_count", f"is {heads}, which does not divide embedding_length, {width}")
    if heads % groups:
        key = "attention.head_count_kv"
        raise refused(file, key, f"is {groups}, which does not divide attention.head_count, {heads}")


def _require_text_generation(file: GgufFile) -> None:
    if file.own("expert_count"):
        raise UnsupportedModel(
            f"{file.path.name} is a mixture of experts ({file.architecture}.expert_count "
            f"is {file.own('expert_count')}), which is not supported"
        )
    if file.own("attention.causal") is False or file.own("pooling_type"):
        raise UnsupportedModel(
            f"{file.path.name} embeds or ranks texts ({file.architecture}.pooling_type) and does not generate text"
        )
    if file.metadata.get("tokenizer.ggml.suppress_tokens"):
        raise refused(file, "tokenizer.ggml.suppress_tokens", "is not supported", bare=True)


def _require_known_keys(file: GgufFile, row: Architecture) -> None:
    known = set(row.keys) | ROPE_KEYS | CHECKED | SILENT | row.reads
    prefix = f"{file.architecture}."
    for name, value in file.metadata.items():
        key = name.removeprefix(prefix)
        if not name.startswith(prefix) or key in known:
            continue
        if key in SILENT_WHEN_ZERO and not value:
            continue
        if key == "tensor_data_layout" and value in TENSOR_LAYOUTS[:1]:
            continue
        if key == "attention.sliding_window" and _reaches_all(value, file.own("context_length")):
            continue
        if key == LAYER_NORM and key not in row.keys and value:
            # Some writers add it beside the epsilon of RMS norms. These models have only RMS norms.
            continue
        raise refused(file, key, f"is {short(value)}, which is not supported here")
    layout = file.own("tensor_data_layout")
    if file.architecture == "falcon" and layout != TENSOR_LAYOUTS[1]:
        raise refused(file, "tensor_data_layout", f"is {layout}, not {TENSOR_LAYOUTS[1]}")


def _reaches_all(window: Any, context: Any) -> bool:
    """Whether a window hides no token: it is zero, or as long as the context."""
    return not window or (isinstance(window, int) and isinstance(context, int) and window >= context)
