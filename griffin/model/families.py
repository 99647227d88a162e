"""The parts of each supported model type: one row of data for each ``model_type``.

Only this module looks up a model type. All others see ``Family``, or the ``FeedForward`` blocks that it describes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from griffin.errors import UnsupportedModel
from griffin.model.matrix.matrix import Matrix
from griffin.model.matrix.modules import by_input, by_output, is_projection


@dataclass(frozen=True, slots=True)
class FeedForwardNames:
    """Paths of one family's feed-forward (FF) projections.

    ``layers`` is relative to the model, the others to a layer. ``fused`` is the number of
    matrices stacked in each expanding projection (2 for gate and up in one weight).
    """

    layers: str
    expand: tuple[str, ...]
    contract: str
    fused: int = 1

    @property
    def parts(self) -> int:
        """Number of matrices D -> F: 2 with a gate, otherwise 1."""
        return len(self.expand) * self.fused

    def is_contracting(self, path: str) -> bool:
        """Whether a path in the model is that of a contracting projection."""
        return path.startswith(f"{self.layers}.") and path.endswith(f".{self.contract}")


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """Paths of the attention's projections, relative to a layer, and what the attention sees.

    module: the attention module. It has the head size (``head_dim``) and the factor on scores (``scaling``).
    windows: layers that attend to the latest tokens only: none, every, or those that ``layer_types`` names.
    score_cap: ``attn_logit_softcapping`` is applied.
    """

    module: str = "self_attn"
    query_key_value: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    windows: Literal["none", "every", "by_layer"] = "none"
    score_cap: bool = False


@dataclass(frozen=True, slots=True)
class NormNames:
    """Paths of the norms, relative to a layer; ``final`` is relative to the model. None: no norm.

    plus_one: norms multiply by one plus their weight.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None
    query: str | None = None
    key: str | None = None
    final: str = "model.norm"
    plus_one: bool = False

    def in_layer(self) -> list[str]:
        """The paths of all norms that a layer has."""
        names = (
            self.query, self.key, self.before_attention, self.after_attention,
            self.before_feed_forward, self.after_feed_forward,
        )  # fmt: skip
        return [name for name in names if name]


@dataclass(frozen=True, slots=True)
class Positions:
    """How a token's position is encoded. Paths are relative to the model.

    rotary: the module with the frequencies, or None.
    interleaved: elements 2i and 2i + 1 of a head rotate together; otherwise i and i + R, with R pairs.
    rotary_layers: key of a list with a number for each layer, 0 for layers without rotation. None: all layers rotate.
    query_growth: keys in ``rope_parameters`` of rate and context, see ``weights.QueryGrowth``; or None.
    learned: the module with one embedding for each position, or None.
    """

    rotary: str | None = "model.rotary_emb"
    interleaved: bool = False
    rotary_layers: str | None = None
    query_growth: tuple[str, str] | None = None
    learned: str | None = None


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Keys of a family's constant factors; None is a factor of 1. The factor on scores is the attention's ``scaling``.

    embedding: factor on the embeddings.
    root_of_width: embeddings are multiplied by the root of their width, rounded to their dtype.
    residual: factor on what attention and FF block add to x.
    logit_divisor: the logits are divided by it.
    """

    embedding: str | None = None
    root_of_width: bool = False
    residual: str | None = None
    logit_divisor: str | None = None


@dataclass(frozen=True, slots=True)
class DecoderBlock:
    """A decoder block of the common form, apart from its FF projections.

    The form: x + attention(norm(x)), then x + FF(norm(x)). A norm may precede or follow each block, or both.

    activation: key of the FF block's function.
    logit_cap: ``final_logit_softcapping`` is applied.

    A configuration may contain any key; only keys that the family's own code reads count.
    """

    attention: AttentionNames = field(default_factory=AttentionNames)
    norms: NormNames = field(default_factory=NormNames)
    positions: Positions = field(default_factory=Positions)
    multipliers: Multipliers = field(default_factory=Multipliers)
    activation: str = "hidden_act"
    logit_cap: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One model type: its FF block, and its decoder block if that has the common form.

    A family without a common block decodes through its own forward pass, which is slower.
    """

    feed_forward: FeedForwardNames
    block: DecoderBlock | None = None


GATED = FeedForwardNames("model.layers", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")

PLAIN = DecoderBlock()
WINDOWED = replace(PLAIN, attention=AttentionNames(windows="every"))
WINDOWED_BY_LAYER = replace(PLAIN, attention=AttentionNames(windows="by_layer"))
NORMED_HEADS = NormNames(query="self_attn.q_norm", key="self_attn.k_norm")
# Gemma has norms on both sides, OLMo after both blocks.
SANDWICHED = NormNames(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
    plus_one=True,
)
NORMED_AFTER = replace(
    NORMED_HEADS,
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
)
GEMMA = DecoderBlock(norms=NormNames(plus_one=True), multipliers=Multipliers(root_of_width=True))
GEMMA_2 = replace(
    GEMMA,
    attention=AttentionNames(windows="by_layer", score_cap=True),
    norms=SANDWICHED,
    activation="hidden_activation",
    logit_cap=True,
)
GEMMA_3 = replace(
    GEMMA_2,
    attention=WINDOWED_BY_LAYER.attention,
    norms=replace(SANDWICHED, query=NORMED_HEADS.query, key=NORMED_HEADS.key),
)
PHI_3 = DecoderBlock(AttentionNames(query_key_value=("self_attn.qkv_proj",), windows="every"))
OPT = DecoderBlock(
    AttentionNames(output="self_attn.out_proj"),
    NormNames("self_attn_layer_norm", None, "final_layer_norm", final="model.decoder.final_layer_norm"),
    Positions(rotary=None, learned="model.decoder.embed_positions"),
    activation="activation_function",
)
GRANITE = replace(
    PLAIN,
    multipliers=Multipliers(
        embedding="embedding_multiplier", residual="residual_multiplier", logit_divisor="logits_scaling"
    ),
)
MINISTRAL_3 = replace(
    WINDOWED, positions=Positions(query_growth=("llama_4_scaling_beta", "original_max_position_embeddings"))
)

FAMILIES: dict[str, Family] = {
    "llama": Family(GATED, PLAIN),
    "mistral": Family(GATED, WINDOWED),
    "ministral3": Family(GATED, MINISTRAL_3),
    "gemma": Family(GATED, GEMMA),
    "gemma2": Family(GATED, GEMMA_2),
    "gemma3_text": Family(GATED, GEMMA_3),
    "qwen2": Family(GATED, WINDOWED_BY_LAYER),
    "qwen3": Family(GATED, replace(WINDOWED_BY_LAYER, norms=NORMED_HEADS)),
    "olmo2": Family(GATED, replace(PLAIN, norms=NORMED_AFTER)),
    "olmo3": Family(GATED, replace(WINDOWED_BY_LAYER, norms=NORMED_AFTER)),
    "smollm3": Family(GATED, replace(WINDOWED_BY_LAYER, positions=Positions(rotary_layers="no_rope_layers"))),
    "granite": Family(GATED, GRANITE),
    "phi3": Family(FeedForwardNames("model.layers", ("mlp.gate_up_proj",), "mlp.down_proj", fused=2), PHI_3),
    # OPT has no mlp module: its projections belong to the layer itself.
    "opt": Family(FeedForwardNames("model.decoder.layers", ("fc1",), "fc2"), OPT),
    "gpt_neox": Family(FeedForwardNames("gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")),
    "gpt2": Family(FeedForwardNames("transformer.h", ("mlp.c_fc",), "mlp.c_proj")),
    "phi": Family(FeedForwardNames("model.layers", ("mlp.fc1",), "mlp.fc2")),
    "gptj": Family(FeedForwardNames("transformer.h", ("mlp.fc_in",), "mlp.fc_out")),
    "falcon": Family(FeedForwardNames("transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")),
}


@dataclass(frozen=True, slots=True)
class TextPart:
    """The part of a multimodal model type that is served: a model of its own, with a row in FAMILIES.

    model_type: type of that part, if ``text_config`` does not contain it.
    told_by_shapes: fields that ``text_config`` may lack, because its class knows them. Weights of another model would
        have other shapes.
    left_out: modules whose weights are not read.
    """

    model_type: str
    told_by_shapes: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ("vision_tower", "multi_modal_projector")

    def config(self, whole: Mapping[str, Any]) -> Mapping[str, Any]:
        """The text part's entry in the contents of the whole model's ``config.json``."""
        return {"model_type": self.model_type, **(whole.get("text_config") or {})}


MULTIMODAL: dict[str, TextPart] = {
    "gemma3": TextPart("gemma3_text", frozenset({"num_attention_heads", "vocab_size"})),
    "mistral3": TextPart("mistral"),
}

# The kind of a layer in ``layer_types``.
SLIDING = "sliding_attention"
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The FF block of one layer: D -> F by the expanding projections, F -> D by the contracting one.

    activation: the gate's function; None if there is no gate. A neuron's activation is this function's value times the
        up projection.
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
    def width(self) -> int:
        """F, the number of neurons."""
        return self.down.row_count

    @property
    def parts_FD(self) -> list[Matrix]:
        """The expanding matrices by neuron, ``(F, D)`` each; the gate's first. A stacked one is split."""
        width = self.width
        return [part for p in self.expand for part in by_output(p).split([width] * self.names.fused)]

    @property
    def down(self) -> Matrix:
        """The contracting matrix by neuron, ``(F, D)``."""
        return by_input(self.contract)


def family_of(config: PreTrainedConfig) -> Family:
    """The row of a loaded model's type. There must be one."""
    return FAMILIES[config.model_type]


def has_common_block(model_type: str) -> bool:
    """Whether a supported model type has the common block."""
    return FAMILIES[model_type].block is not None


def text_part(config: Mapping[str, Any]) -> TextPart | None:
    """The part of a checkpoint that is served, by the contents of its ``config.json``; None means all of it."""
    return MULTIMODAL.get(str(config.get("model_type")))


def require_supported(config: Mapping[str, Any]) -> Family:
    """The row for a ``config.json``, before any weight is read. For a multimodal model, the row of its text part.

    Raises:
        UnsupportedModel: this model type has no row (the text lists all rows), or a number is missing that only this
            family needs.
    """
    if part := text_part(config):
        return require_supported(part.config(config))
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        kind = " (a mixture of experts)" if any(config.get(name) for name in EXPERT_COUNTS) else ""
        raise UnsupportedModel(
            f"model type '{model_type}'{kind} is not supported; supported are: {', '.join(FAMILIES)}, "
            f"and the text part of {', '.join(MULTIMODAL)}"
        )
    family = FAMILIES[model_type]
    _require_query_growth(family, config)
    return family


def _require_query_growth(family: Family, config: Mapping[str, Any]) -> None:
    if family.block is None or family.block.positions.query_growth is None:
        return
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if missing := [key for key in family.block.positions.query_growth if rope.get(key) is None]:
        raise UnsupportedModel(
            f"'{config['model_type']}' models need {missing[0]} among their rope_parameters, but this one lacks it"
        )


def windows(family: Family, config: PreTrainedConfig, layers: int) -> list[int | None]:
    """The number of latest tokens that each layer attends to; None: all."""
    windowed = "none" if family.block is None else family.block.attention.windows
    window = getattr(config, "sliding_window", None)
    kinds = config.layer_types if windowed == "by_layer" else [SLIDING] * layers
    return [window if windowed != "none" and kind == SLIDING else None for kind in kinds]


def logit_cap(family: Family, config: PreTrainedConfig) -> float | None:
    """c if logits become c tanh(logits / c); otherwise None."""
    capped = family.block is not None and family.block.logit_cap
    return getattr(config, "final_logit_softcapping", None) if capped else None


def logit_divisor(family: Family, config: PreTrainedConfig) -> float:
    """The divisor of logits, applied before any cap; 1 if there is none."""
    return 1.0 if family.block is None else multiplier(config, family.block.multipliers.logit_divisor)


def multiplier(config: PreTrainedConfig, key: str | None) -> float:
    """The factor under a key of ``Multipliers``; 1 if there is no key."""
    return 1.0 if key is None else float(getattr(config, key))


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The FF blocks of all layers in order; never fewer than the model has layers.

    Raises:
        UnsupportedModel: the model type has no row, or its modules differ from the row.
    """
    family = require_supported(model.config.to_dict())
    names = family.feed_forward
    try:
        layers = model.get_submodule(names.layers)
        activation = _gate(model.config, family)
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


def _gate(config: PreTrainedConfig, family: Family) -> Callable[[Tensor], Tensor] | None:
    if family.feed_forward.parts < 2:
        return None
    # Every gated family has a common block, see the tests.
    assert family.block is not None
    function: Callable[[Tensor], Tensor] = ACT2FN[getattr(config, family.block.activation)]
    return function
