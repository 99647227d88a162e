"""``rope_parameters`` of a GGUF file: base, scaling, and how much of a head is rotated."""

import math
from typing import Any

import numpy as np
from gguf import dequantize

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_values import positive, refused, require_equal, size, tokens

Fields = dict[str, Any]

ORIGINAL = "rope.scaling.original_context_length"
# All keys that this module reads.
ROPE_KEYS = {
    "rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.attn_factor", ORIGINAL, "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
DEFAULT_ROPE_BASE = 10_000.0
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def rotary(file: GgufFile, context: int, head: int, *, partial: bool) -> Fields:
    """``rope_parameters``: base, scaling, and how much of a head is rotated."""
    base = positive(file, "rope.freq_base")
    parameters: Fields = {"rope_type": "default", "rope_theta": DEFAULT_ROPE_BASE if base is None else base}
    rotated = size(file, "rope.dimension_count") or head
    if rotated % 2:
        keys = ("rope.dimension_count", "attention.key_length")
        told_by = next((key for key in keys if file.own(key) is not None), "attention.head_count")
        raise refused(file, told_by, f"has {rotated} numbers of a head rotated in pairs, which must be an even number")
    if rotated != head:
        if not partial or rotated > head:
            raise refused(file, "rope.dimension_count", f"is {rotated}, but heads of such models have {head}")
        parameters["partial_rotary_factor"] = rotated / head
    return parameters | _scaling(file, context, rotated // 2)


def _scaling(file: GgufFile, context: int, pairs: int) -> Fields:
    kind, original = file.own("rope.scaling.type"), tokens(file, ORIGINAL)
    if original == 1:
        raise refused(file, ORIGINAL, "is 1, but must be above it")
    # Zero means that there is none.
    factor = file.own("rope.scaling.factor") and positive(file, "rope.scaling.factor")
    factor = factor or (file.own("rope.scale_linear") and positive(file, "rope.scale_linear"))
    if factors := _stored_factors(file, context, original, pairs):
        if kind not in (None, "none", "longrope") or (factor or 1) != 1:
            raise refused(file, "rope.scaling.type", f"is {kind}, but the file has factors of its own too")
        return factors
    if kind == "yarn" and factor:
        return _yarn(file, float(factor), original or context)
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        require_equal(file, key, 1)
    if kind in (None, "none", "linear") and (factor or 1) == 1:
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": float(factor)}
    raise refused(file, "rope.scaling.type", f"is {kind}, which is not supported, or lacks its factor")


def _yarn(file: GgufFile, factor: float, original: int) -> Fields:
    extrapolation = file.own("rope.scaling.yarn_ext_factor")
    if extrapolation not in (None, 1.0):
        raise refused(file, "rope.scaling.yarn_ext_factor", f"is {extrapolation!s:.40}; transformers knows 1 alone")
    parameters: Fields = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    names = {
        "rope.scaling.yarn_attn_factor": "attention_factor",
        "rope.scaling.attn_factor": "attention_factor",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    return parameters | {name: value for key, name in names.items() if (value := positive(file, key)) is not None}


def _stored_factors(file: GgufFile, context: int, original: int | None, pairs: int) -> Fields | None:
    """Factors of single frequencies: Llama 3's, or longrope's two lists. For transformers any list is a longrope."""
    alone, long, short = (_factors(file, name, pairs) for name in ROPE_TENSORS)
    if alone is not None and (short or long) is None:
        return None if all(value == 1 for value in alone) else _longrope(alone, alone, context, 1.0)
    if short is None and long is None:
        if file.own("rope.scaling.type") == "longrope":
            raise refused(file, "rope.scaling.type", "is longrope, but the file has no factors")
        return None
    if short is None or long is None or original is None:
        raise refused(file, ORIGINAL, "or one of its two lists of factors is missing")
    attention = positive(file, "rope.scaling.attn_factor")
    return _longrope(short, long, original, 1.0 if attention is None else float(attention), context)


def _factors(file: GgufFile, name: str, pairs: int) -> list[float] | None:
    if name not in file.tensors:
        return None
    tensor = file.tensors[name]
    values = np.asarray(dequantize(tensor.data, tensor.type), dtype=np.float32).ravel()
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
        # The same formula as for the checkpoint that the file was made from, so the result is the same to the last bit.
        parameters["attention_factor"] = usual
    return parameters
