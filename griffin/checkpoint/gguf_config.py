"""The configuration that a GGUF file's keys stand for, in transformers' terms.

Each architecture is a row. A key that no row knows is refused by name: it may change what the model computes.
What keys mean: llama.cpp's converter (conversion/) and model definitions (src/models/), as of llama-cpp-python 0.3.36.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import dequantize
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from griffin.checkpoint.gguf_file import GgufFile
from griffin.errors import LoadError, UnsupportedModel

Fields = dict[str, Any]

SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
# Read by functions below, or checked to say what is the case anyway.
ROPE_KEYS = {
    "rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
CHECKED = {"attention.key_length", "attention.value_length", "attention.causal", "pooling_type", "vocab_size"}
# These change nothing at any value.
SILENT = {"rope.scaling.finetuned", "expert_used_count"}
# These change nothing when they are zero, false or empty.
SILENT_WHEN_ZERO = {
    "expert_count", "expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "logit_scale",
    "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
    "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip
# What a file recommends, under general.sampling, and transformers' names for it.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
TENSOR_LAYOUTS = ("Meta AI original pth", "jploski")
DEFAULT_ROPE_BASE = 10_000.0
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What one of llama.cpp's architectures is called in transformers, and what its keys mean there.

    model_type: transformers'.
    keys: key, without the architecture's name, to the configuration's field.
    more: computes further fields.
    reads: further keys that ``more`` reads.
    biases: whether a bias in the file (q of attention, gate of the FF block) has a field that turns it on.
    rope_tensors: tensors of frequencies that such files may hold.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: SIZES | RMS)
    more: Callable[[GgufFile, Fields], Fields] = lambda file, fields: {}
    reads: frozenset[str] = frozenset()
    biases: bool = False
    rope_tensors: Collection[str] = ()


def _windowed_by_layer(file: GgufFile, fields: Fields, period: int) -> Fields:
    """Layer types: every ``period``-th layer attends to all, unless the file says otherwise."""
    window, layers = file.own("attention.sliding_window"), fields["num_hidden_layers"]
    window = window and _positive(file, "attention.sliding_window")
    pattern = file.own("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        pattern = _positive(file, "attention.sliding_window_pattern")
    if not window:
        sliding = [False] * layers
    elif isinstance(pattern, list):
        sliding = [bool(value) for value in pattern]
    else:
        sliding = [(number + 1) % int(pattern or period) != 0 for number in range(layers)]
    if len(sliding) != layers:
        raise _refused(file, "attention.sliding_window_pattern", f"names {len(sliding)} layers of {layers}")
    kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return {"sliding_window": window or fields["max_position_embeddings"], "layer_types": kinds}


def _gemma_scale(file: GgufFile, fields: Fields, large: int) -> Fields:
    # No key says it; llama.cpp goes by the number of layers too, which only the 27B models have.
    heads, layers = fields["num_attention_heads"], fields["num_hidden_layers"]
    return {"query_pre_attn_scalar": fields["hidden_size"] // heads if layers == large else fields["head_dim"]}


def _gemma2(file: GgufFile, fields: Fields) -> Fields:
    caps = {
        f"{place}_logit_softcapping": default if (value := file.own(f"{place}_logit_softcapping")) is None else value
        for place, default in (("attn", 50.0), ("final", 30.0))
    }
    if not file.own("attention.sliding_window"):
        raise _refused(file, "attention.sliding_window", "is missing, and this model needs it")
    for place in ("attn", "final"):
        _positive(file, f"{place}_logit_softcapping")
    return {**_windowed_by_layer(file, fields, 2), **_gemma_scale(file, fields, 46), **caps}


def _gemma3(file: GgufFile, fields: Fields) -> Fields:
    cap = file.own("final_logit_softcapping")
    local = {"rope_type": "default", "rope_theta": _positive(file, "rope.freq_base_swa") or DEFAULT_ROPE_BASE}
    rope = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    more = {"final_logit_softcapping": cap or None, "rope_parameters": rope}
    return {**_windowed_by_layer(file, fields, 6), **_gemma_scale(file, fields, 62), **more}


def _phi3(file: GgufFile, fields: Fields) -> Fields:
    original = file.own("rope.scaling.original_context_length") or fields["max_position_embeddings"]
    return {
        "sliding_window": file.own("attention.sliding_window") or None,
        "original_max_position_embeddings": original,
    }


def _falcon(file: GgufFile, fields: Fields) -> Fields:
    heads = fields["num_kv_heads"]
    # Its large models have one norm for each of the two parallel branches; 11B has one for both.
    two_norms = "blk.0.attn_norm_2.weight" in file.tensors
    return {
        "multi_query": heads == 1,
        "new_decoder_architecture": heads != 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "ffn_hidden_size": file.own("feed_forward_length"),
    }


LAYER_NORM = "attention.layer_norm_epsilon"
WINDOW_KEYS = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", biases=True, rope_tensors=ROPE_TENSORS),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
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
        "phi3", more=_phi3, reads=frozenset({"attention.sliding_window"}), rope_tensors=ROPE_TENSORS[1:]
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
    ),
}  # fmt: skip


def config_of(file: GgufFile) -> PreTrainedConfig:
    """The configuration of a file's model.

    Raises:
        UnsupportedModel: no row for its architecture, or it is no model that generates text.
        LoadError: a key that no row knows, or a value that no model here has; names the key.
    """
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF files of architecture '{file.architecture}' are not supported; supported are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    row = ARCHITECTURES[file.architecture]
    _require_text_generation(file)
    _require_known_keys(file, row)
    fields: Fields = {name: _number(file, key) for key, name in row.keys.items()}
    if "attention.head_count_kv" in row.keys and fields[row.keys["attention.head_count_kv"]] is None:
        fields[row.keys["attention.head_count_kv"]] = fields["num_attention_heads"]
    absent = [key for key, name in row.keys.items() if fields[name] is None]
    if absent:
        raise LoadError(f"{file.path.name} lacks the key {file.architecture}.{absent[0]}")
    if strange := [name for name in ROPE_TENSORS if name in file.tensors and name not in row.rope_tensors]:
        raise LoadError(f"{file.path.name} has a tensor that such models do not use: {strange[0]}")
    fields |= _common(file, fields, row)
    fields |= row.more(file, fields)
    return AutoConfig.for_model(row.model_type, **fields)


def settle_sampling(model: PreTrainedModel, file: GgufFile) -> None:
    """From now on the model's generation_config has what the file recommends for drawing tokens."""
    recommended = {name: file.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    given = {name: value for name, value in recommended.items() if value is not None}
    if given and model.generation_config is not None:
        # The library refuses to write such values where nothing is drawn.
        model.generation_config.update(do_sample=True, **given)


def _common(file: GgufFile, fields: Fields, row: Architecture) -> Fields:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise LoadError(f"{file.path.name} lacks 1 of the model's weights: token_embd.weight")
    ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    rows = int(embedding.shape[1])
    _require_equal(file, "vocab_size", rows)
    tokens = len(file.metadata.get("tokenizer.ggml.tokens") or ())
    for name, id in ids.items():
        if id is not None and not (isinstance(id, int) and 0 <= id < max(rows, tokens)):
            raise LoadError(f"{file.path.name}: its {name} is {_short(id)}, and there are {rows} tokens")
    common: Fields = {
        **ids,
        # The reader gives the fastest dimension first.
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "architectures": None,
    }
    if row.model_type == "gpt2":
        if rotary := [key for key in ROPE_KEYS if file.own(key) is not None]:
            raise _refused(file, rotary[0], "is set, but such models have no rotary positions")
        return common
    width = fields["hidden_size"] // fields["num_attention_heads"]
    head = int(file.own("attention.key_length") or file.own("rope.dimension_count") or width)
    if row.model_type in ("phi3", "falcon"):
        head = width
    _require_equal(file, "attention.key_length", head)
    _require_equal(file, "attention.value_length", head)
    if row.model_type in ("qwen2", "falcon", "phi3") and head != width:
        raise _refused(file, "attention.key_length", f"is {head}, and such models have {width}")
    if row.model_type not in ("qwen2", "falcon"):
        common["head_dim"] = head
    if row.biases:
        common["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        common["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    common["rope_parameters"] = _rope(file, fields["max_position_embeddings"], head, row)
    return common


def _rope(file: GgufFile, context: int, head: int, row: Architecture) -> Fields:
    """``rope_parameters``: base, scaling, and how much of a head is rotated."""
    base = _positive(file, "rope.freq_base")
    parameters: Fields = {"rope_type": "default", "rope_theta": DEFAULT_ROPE_BASE if base is None else base}
    rotated = file.own("rope.dimension_count") or head
    if rotated != head:
        if row.model_type != "phi3":
            raise _refused(file, "rope.dimension_count", f"is {rotated}, but heads of such models have {head}")
        parameters["partial_rotary_factor"] = rotated / head
    return parameters | _scaling(file, context, rotated // 2)


def _scaling(file: GgufFile, context: int, pairs: int) -> Fields:
    kind = file.own("rope.scaling.type")
    # Zero is none.
    factor = file.own("rope.scaling.factor") and _positive(file, "rope.scaling.factor")
    factor = factor or (file.own("rope.scale_linear") and _positive(file, "rope.scale_linear"))
    if factors := _stored_factors(file, context, pairs):
        if kind not in (None, "none", "longrope") or (factor or 1) != 1:
            raise _refused(file, "rope.scaling.type", f"is {kind}, but the file has factors of its own too")
        return factors
    if kind == "yarn" and factor:
        return _yarn(file, float(factor), context)
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        _require_equal(file, key, 1)
    if kind in (None, "none", "linear") and (factor or 1) == 1:
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": float(factor)}
    raise _refused(file, "rope.scaling.type", f"is {kind}, which is not supported, or lacks its factor")


def _yarn(file: GgufFile, factor: float, context: int) -> Fields:
    extrapolation = file.own("rope.scaling.yarn_ext_factor")
    if extrapolation not in (None, 1.0):
        raise _refused(file, "rope.scaling.yarn_ext_factor", f"is {extrapolation:g}; transformers knows 1 alone")
    parameters: Fields = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.own("rope.scaling.original_context_length") or context,
    }
    names = {
        "rope.scaling.yarn_attn_factor": "attention_factor",
        "rope.scaling.attn_factor": "attention_factor",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    return parameters | {name: value for key, name in names.items() if (value := file.own(key)) is not None}


def _stored_factors(file: GgufFile, context: int, pairs: int) -> Fields | None:
    """Factors of single frequencies: Llama 3's, or longrope's two lists. transformers' longrope takes any list."""
    alone, long, short = (_factors(file, name, pairs) for name in ROPE_TENSORS)
    if alone is not None and (short or long) is None:
        return None if all(value == 1 for value in alone) else _longrope(alone, alone, context, 1.0)
    if short is None and long is None:
        if file.own("rope.scaling.type") == "longrope":
            raise _refused(file, "rope.scaling.type", "is longrope, but the file has no factors")
        return None
    original = file.own("rope.scaling.original_context_length")
    if short is None or long is None or original is None:
        raise _refused(file, "rope.scaling.original_context_length", "or one of its two lists of factors is missing")
    attention = file.own("rope.scaling.attn_factor")
    return _longrope(short, long, int(original), 1.0 if attention is None else float(attention), context)


def _factors(file: GgufFile, name: str, pairs: int) -> list[float] | None:
    if name not in file.tensors:
        return None
    tensor = file.tensors[name]
    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).ravel()
    if len(values) != pairs or not (np.isfinite(values) & (values > 0)).all():
        raise LoadError(f"{file.path.name}: the tensor {name} must hold {pairs} numbers above 0")
    return [float(value) for value in values]


def _longrope(
    short: list[float], long: list[float], original: int, attention: float, context: int | None = None
) -> Fields:
    parameters: Fields = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }
    scale = (context or original) / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    if context is not None and math.isclose(attention, usual, rel_tol=1e-6):
        # To the last bit, by the same formula as for the checkpoint that the file was made of.
        parameters["attention_factor"] = usual
    return parameters


def _require_text_generation(file: GgufFile) -> None:
    if file.own("expert_count"):
        raise UnsupportedModel(
            f"{file.path.name} is a mixture of experts ({file.architecture}.expert_count "
            f"is {file.own('expert_count')}), which is not supported"
        )
    if file.own("attention.causal") is False or file.own("pooling_type"):
        raise UnsupportedModel(
            f"{file.path.name} embeds or ranks texts ({file.architecture}.pooling_type), and generates none"
        )
    if file.metadata.get("tokenizer.ggml.suppress_tokens"):
        raise _refused(file, "tokenizer.ggml.suppress_tokens", "is not supported", bare=True)


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
            # Written beside the epsilon of RMS norms by some; these models have no other norms.
            continue
        raise _refused(file, key, f"is {_short(value)}, which is not supported here")
    layout = file.own("tensor_data_layout")
    if file.architecture == "falcon" and layout != TENSOR_LAYOUTS[1]:
        raise _refused(file, "tensor_data_layout", f"is {layout}, not {TENSOR_LAYOUTS[1]}")


def _reaches_all(window: Any, context: Any) -> bool:
    """Whether a window is none: zero, or as long as the context."""
    return not window or (isinstance(window, int) and isinstance(context, int) and window >= context)


def _number(file: GgufFile, key: str) -> Any:
    value = file.own(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise _refused(file, key, f"differs from layer to layer ({_short(value)}), which is not supported")
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool | str) or not (math.isfinite(value) and value > 0):
        raise _refused(file, key, f"is {_short(value)}, and must be a number above 0")
    return float(value) if isinstance(value, float) else int(value)


def _positive(file: GgufFile, key: str) -> Any:
    value = file.own(key)
    if isinstance(value, list):
        raise _refused(file, key, f"is {_short(value)}, and must be a number above 0")
    return _number(file, key)


def _require_equal(file: GgufFile, key: str, expected: int) -> None:
    found = file.own(key)
    if found is not None and found != expected:
        raise _refused(file, key, f"is {found}, but should be {expected}")


def _refused(file: GgufFile, key: str, why: str, *, bare: bool = False) -> LoadError:
    name = key if bare else f"{file.architecture}.{key}"
    return LoadError(f"{file.path.name} cannot be served as it is meant: its key {name} {why}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
