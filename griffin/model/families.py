"""Where each model family keeps its feed-forward (FF) block: one row of data per ``model_type``.

All other modules see ``FeedForward``, never a projection's name or a model type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from griffin.errors import UnsupportedModel
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import by_input, by_output, is_projection


@dataclass(frozen=True, slots=True)
class FeedForwardNames:
    """Paths of one family's FF projections.

    ``layers`` is relative to the model, the others to a layer. ``fused`` is the number of
    matrices stacked in each expanding projection (2 for gate and up in one weight).
    """

    layers: str
    expand: tuple[str, ...]
    contract: str
    fused: int = 1

    @property
    def parts(self) -> int:
        """Matrices D -> F: 2 where gated, 1 otherwise."""
        return len(self.expand) * self.fused


GATED = FeedForwardNames("model.layers", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")

FAMILIES: dict[str, FeedForwardNames] = {
    "llama": GATED,
    "mistral": GATED,
    "gemma": GATED,
    "gemma2": GATED,
    "gemma3_text": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "olmo2": GATED,
    "phi3": FeedForwardNames("model.layers", ("mlp.gate_up_proj",), "mlp.down_proj", fused=2),
    # OPT has no mlp module: its projections sit on the layer itself.
    "opt": FeedForwardNames("model.decoder.layers", ("fc1",), "fc2"),
    "gpt_neox": FeedForwardNames("gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "gpt2": FeedForwardNames("transformer.h", ("mlp.c_fc",), "mlp.c_proj"),
    "phi": FeedForwardNames("model.layers", ("mlp.fc1",), "mlp.fc2"),
    "gptj": FeedForwardNames("transformer.h", ("mlp.fc_in",), "mlp.fc_out"),
    "falcon": FeedForwardNames("transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
}


@dataclass(frozen=True, slots=True)
class BlockNames:
    """Where a family keeps the rest of a decoder block, if that block has the common form.

    The form: x + attention(norm(x)), then x + FF(norm(x)); each norm may stand before, behind or on both sides.
    Paths are relative to a layer; ``final_norm``, ``rotary`` and ``positions`` to the model.

    activation: what the configuration calls the FF block's function.
    windows: whether every layer attends to the latest tokens only, or those that ``layer_types`` names.
    unit_offset: norms multiply by one plus their weight, and embeddings by the root of their width (Gemma).
    score_cap, logit_cap: whether ``attn_logit_softcapping`` and ``final_logit_softcapping`` are applied.

    A configuration may carry any name; only those count that the family's own code reads.
    """

    attention: str = "self_attn"
    query_key_value: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None
    final_norm: str = "model.norm"
    rotary: str | None = "model.rotary_emb"
    positions: str | None = None
    activation: str = "hidden_act"
    windows: Literal["none", "every", "by_layer"] = "none"
    unit_offset: bool = False
    score_cap: bool = False
    logit_cap: bool = False


NORMED_HEADS = BlockNames(query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
SANDWICHED = replace(
    BlockNames(unit_offset=True, activation="hidden_activation", windows="by_layer", logit_cap=True),
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)

# Families that are not here decode through their own forward pass, which is slower.
BLOCKS: dict[str, BlockNames] = {
    "llama": BlockNames(),
    "mistral": BlockNames(windows="every"),
    "qwen2": BlockNames(windows="by_layer"),
    "qwen3": replace(NORMED_HEADS, windows="by_layer"),
    "gemma": BlockNames(unit_offset=True),
    "gemma2": replace(SANDWICHED, score_cap=True),
    "gemma3_text": replace(SANDWICHED, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    "olmo2": replace(
        NORMED_HEADS,
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_feed_forward=None,
        after_feed_forward="post_feedforward_layernorm",
    ),
    "phi3": BlockNames(query_key_value=("self_attn.qkv_proj",), windows="every"),
    "opt": BlockNames(
        output="self_attn.out_proj",
        before_attention="self_attn_layer_norm",
        before_feed_forward="final_layer_norm",
        final_norm="model.decoder.final_layer_norm",
        rotary=None,
        positions="model.decoder.embed_positions",
        activation="activation_function",
    ),
}

# A layer's kind in ``layer_types``.
SLIDING = "sliding_attention"
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The FF block of one layer: D -> F by the expanding projections, F -> D by the contracting one.

    activation: the function that gates, of a gated block: activations are what it gives times the up projection.
    """

    layer: nn.Module
    names: FeedForwardNames
    activation: Callable[[Tensor], Tensor] | None = None

    @property
    def expand(self) -> list[nn.Module]:
        return [self.layer.get_submodule(name) for name in self.names.expand]

    @property
    def contract(self) -> nn.Module:
        return self.layer.get_submodule(self.names.contract)

    @property
    def parts(self) -> int:
        """As of its names."""
        return self.names.parts

    @property
    def width(self) -> int:
        """F, the number of neurons."""
        return self.down.row_count

    @property
    def parts_FD(self) -> list[Matrix]:
        """The expanding matrices by neuron, ``(F, D)`` each; the gate's first. One that is stacked is cut."""
        width = self.width
        return [part for p in self.expand for part in by_output(p).split([width] * self.names.fused)]

    @property
    def down(self) -> Matrix:
        """The contracting matrix by neuron, ``(F, D)``."""
        return by_input(self.contract)


def windows(config: PreTrainedConfig, layers: int) -> list[int | None]:
    """How many of the latest tokens each layer attends to; None is all."""
    names = BLOCKS.get(config.model_type, BlockNames())
    window = getattr(config, "sliding_window", None)
    kinds = config.layer_types if names.windows == "by_layer" else [SLIDING] * layers
    return [window if names.windows != "none" and kind == SLIDING else None for kind in kinds]


def logit_cap(config: PreTrainedConfig) -> float | None:
    """c where logits become c tanh(logits / c), or None."""
    names = BLOCKS.get(config.model_type, BlockNames())
    return getattr(config, "final_logit_softcapping", None) if names.logit_cap else None


def require_supported(config: Mapping[str, object]) -> FeedForwardNames:
    """The family's row for the contents of a ``config.json``, before any weight is read.

    Raises:
        UnsupportedModel: no row for this model type; the text lists those there are.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        kind = " (a mixture of experts)" if any(config.get(name) for name in EXPERT_COUNTS) else ""
        raise UnsupportedModel(
            f"model type '{model_type}'{kind} is not supported; supported are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The FF blocks of all layers, first to last; never fewer than the model has layers.

    Raises:
        UnsupportedModel: the model type has no row, or the modules are not as the row says.
    """
    names = require_supported(model.config.to_dict())
    try:
        layers = model.get_submodule(names.layers)
        activation = _gate(model.config, names)
        blocks = [FeedForward(layer, names, activation) for layer in layers.children()]
        projections = [p for block in blocks for p in (*block.expand, block.contract)]
        widths = {block.width for block in blocks if is_projection(block.contract)}
    except AttributeError as missing:
        raise UnsupportedModel(
            f"this '{model.config.model_type}' model has no {names.contract} where expected: {missing}"
        ) from None
    strange = {f"{type(p).__name__} of {p.weight.dtype}" for p in projections if not is_projection(p)}
    if strange or len(widths) != 1:
        raise UnsupportedModel(
            f"this '{model.config.model_type}' model's feed-forward blocks are not plain projections of one width: "
            f"modules {sorted(strange) or 'as expected'}, widths {sorted(widths)}"
        )
    return blocks


def _gate(config: PreTrainedConfig, names: FeedForwardNames) -> Callable[[Tensor], Tensor] | None:
    if names.parts < 2:
        return None
    # Every gated family has a row there, see the tests.
    function: Callable[[Tensor], Tensor] = ACT2FN[getattr(config, BLOCKS[config.model_type].activation)]
    return function
