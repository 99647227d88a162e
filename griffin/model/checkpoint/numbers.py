"""Checks of a ``config.json``: numbers that no model can have, and numbers that must not be missing.

transformers has defaults for missing numbers: those of one model, silently applied to another.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from griffin.errors import LoadError

# Of each of these, one name must be present, because no weight's shape tells the number.
NEEDED: Sequence[tuple[str, ...]] = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_head", "num_heads"),
    ("vocab_size",),
)
# Whole numbers from 1 on.
COUNTS = {
    *(name for names in NEEDED for name in names), "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size",
    "num_key_value_heads", "num_kv_heads", "head_dim", "max_position_embeddings", "n_positions",
    "original_max_position_embeddings",
}  # fmt: skip
# Numbers above 0.
POSITIVE = (
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "factor", "attn_logit_softcapping",
    "final_logit_softcapping", "query_pre_attn_scalar",
)  # fmt: skip


def require_numbers(config: Mapping[str, Any], source: str, told_by_shapes: Collection[str] = ()) -> None:
    """
    Args:
        told_by_shapes: fields that may be missing, because the shapes of this model's weights tell them.

    Raises:
        LoadError: a number is missing, or no model can have it. Names the field.
    """
    for names in NEEDED:
        if not any(config.get(name) is not None or name in told_by_shapes for name in names):
            raise LoadError(f"'{source}': config.json lacks {names[0]}; copy the model's own config.json")
    _require_sane(config, source, "")
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if isinstance(rope, Mapping):
            for inner, part in _parts(rope):
                _require_scaling(part, source, f"{name}{inner}")


def _parts(rope: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The rotary parameters; if kinds of layers have different ones, those of each kind."""
    inside = [(f".{name}", part) for name, part in rope.items() if isinstance(part, Mapping)]
    return inside or [("", rope)]


def _require_scaling(rope: Mapping[str, Any], source: str, where: str) -> None:
    if rope.get("factor") is not None and not (rope.get("rope_type") or rope.get("type")):
        raise LoadError(f"'{source}': config.json has a factor in {where}, but no rope_type that says what it is for")
    _require_sane(rope, source, f"{where}.")


def _require_sane(values: Mapping[str, Any], source: str, where: str) -> None:
    for name, value in values.items():
        if value is None or isinstance(value, list | Mapping):
            continue
        if name in COUNTS and not (_is_number(value) and value == int(value) and value >= 1):
            raise _refused(source, where + name, value, "a whole number of at least 1")
        if name in POSITIVE and not (_is_number(value) and value > 0):
            raise _refused(source, where + name, value, "a number above 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refused(source: str, name: str, value: object, wanted: str) -> LoadError:
    return LoadError(f"'{source}': {name} in config.json is {str(value)[:40]!r} and must be {wanted}")
