"""Everything that one decode step of the common block reads: merged projections, norms, rotary frequencies.

No matrix is copied. Projections that read the same input are merged, and the model's own become views of the result.

Shapes: D model width, F feed-forward neurons, V vocabulary, H query heads, G key and value heads, S head size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.model.exact import exact
from griffin.model.families import (
    DecoderBlock,
    FeedForward,
    NormNames,
    Positions,
    family_of,
    feed_forwards,
    logit_cap,
    logit_divisor,
    multiplier,
    windows,
)
from griffin.model.gates import GatesByInput
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.matrix import Matrix, joined
from griffin.model.matrix.modules import MatrixLinear, by_output, merged_, table

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# transformers' names of the same functions.
ALIASES: dict[str, Activation] = {
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Types whose frequencies stay the same while a sequence fits into an engine's context.
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMS norm, or layer norm if ``centred``. Computed in fp32.

    weight: ``(width,)``; fp32 if the family adds one to it, otherwise the model's dtype.
    bias: the same, or None.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """y = matrix x + bias.

    parts: the matrix, ``(outputs, inputs)``, with contiguous rows; or several whose outputs follow each other.
    bias: ``(outputs,)`` or None.
    """

    parts: Sequence[Matrix]
    bias: Tensor | None

    @property
    def matrix(self) -> Matrix:
        """The whole matrix, if it is a single one."""
        (matrix,) = self.parts
        return matrix

    @property
    def outputs(self) -> int:
        return sum(part.row_count for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if len(self.parts) == 1:
            return self.parts[0].product(x, bias)
        y = torch.cat([part.product(x) for part in self.parts], dim=-1)
        return y if bias is None else y + bias


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Rotary position embedding: the first 2R elements of each head are R pairs that rotate.

    frequencies_R: fp32, angle per position.
    scaling: factor on cosine and sine.
    interleaved: pair i is elements 2i and 2i + 1; otherwise elements i and i + R.
    """

    frequencies_R: Tensor
    scaling: float
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class QueryGrowth:
    """A factor on queries that grows with their position: 1 + rate ln(1 + floor(position / context))."""

    rate: float
    context: int

    def factor(self, position: int) -> float:
        """The factor on the query at a position; exactly 1 within the context."""
        return 1 + self.rate * math.log(1 + position // self.context)


@dataclass(frozen=True, slots=True, eq=False)
class FeedForwardWeights:
    """The FF block by neuron.

    expand: ``(parts F, D)``; parts is 2 where gated (the gate's rows first), 1 otherwise.
    contract: ``(F, D)``, one row a neuron.
    contract_bias: ``(D,)`` or None.
    """

    expand: Projection
    contract: Matrix
    contract_bias: Tensor | None
    gated: bool

    def at_rest(self, resting_F: Tensor) -> Tensor:
        """The block's output if these are the activations of all neurons: ``(D,)``, in the matrix's dtype."""
        return self.contract.weighted_rows(resting_F.to(self.contract.dtype), self.contract_bias)

    def expanding(self) -> list[Projection]:
        """The gate's projection, and with a gate the one that it is multiplied by; ``(F, D)`` each."""
        bias, neurons = self.expand.bias, self.contract.row_count
        parts = [piece for part in self.expand.parts for piece in part.split([neurons] * (part.row_count // neurons))]
        biases = [None] * len(parts) if bias is None else torch.split(bias, neurons)
        return [Projection((part,), own) for part, own in zip(parts, biases, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One decoder block.

    query_key_value: ``((H + 2 G) S, D)``.
    query_norm, key_norm: over one head if their weight is as long as one head, else over all heads at once.
    window: number of latest tokens to attend to; None: all.
    """

    before_attention: Norm | None
    query_key_value: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: Rotary | None
    window: int | None
    output: Projection
    after_attention: Norm | None
    before_feed_forward: Norm | None
    feed_forward: FeedForwardWeights
    after_feed_forward: Norm | None


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A whole model.

    dtype: of hidden states, keys and values; matrices may have other formats.
    embedding, embedding_scale: ``(V, D)``; a token's row is multiplied by the factor.
    positions: learned position embeddings ``(context, D)``, or None.
    residual_scale: factor on what attention and FF block add to x, after any norm.
    scale: factor on query-key products.
    score_cap, logit_cap: c if scores and logits become c tanh(x / c); otherwise None.
    logit_divisor: logits are divided by this, before any cap.
    gates: see ``gates_by_input``.
    """

    dtype: torch.dtype
    embedding: Matrix
    embedding_scale: float
    positions: Tensor | None
    residual_scale: float
    layers: Sequence[Layer]
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    query_growth: QueryGrowth | None
    score_cap: float | None
    activation: Activation
    final_norm: Norm
    head: Projection
    logit_divisor: float
    logit_cap: float | None
    gates: GatesByInput = field(default_factory=GatesByInput)

    @property
    def width(self) -> int:
        return self.embedding.columns

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def cache_dtype(self) -> torch.dtype:
        """Dtype of keys and values: float16 if weights are codes and activations bfloat16, else that of activations.

        The step's activations are fp32. Float16 keeps three bits more of them than bfloat16, whose rounding would be
        the largest error.
        """
        coded = any(isinstance(matrix, GroupedRows | GroupedColumns) for matrix in self.matrices())
        return torch.float16 if coded and self.dtype == torch.bfloat16 else self.dtype

    def gates_by_input(self) -> Sequence[Matrix]:
        """For each layer the gate's matrix with a row for each input, ``(D, F)``, made at the first call.

        Raises:
            MemoryError
        """
        return self.gates.matrices([layer.feed_forward.expanding()[0].matrix for layer in self.layers])

    def matrices(self) -> Iterator[Matrix]:
        """All matrices that a token reads, without tables of positions."""
        yield from (self.embedding, *self.head.parts)
        for layer in self.layers:
            yield from (*layer.query_key_value.parts, *layer.output.parts)
            yield from (*layer.feed_forward.expand.parts, layer.feed_forward.contract)

    def contract_bias(self) -> Tensor:
        """The bias of each layer's contracting projection, fp32 ``(L, D)``; zeros if it has none."""
        biases = [layer.feed_forward.contract_bias for layer in self.layers]
        none_D = torch.zeros(self.width, device=self.device)
        return torch.stack([none_D if bias is None else bias for bias in biases]).float()


@torch.inference_mode()
def read_weights(model: PreTrainedModel) -> Weights | None:
    """A model's weights; None if its blocks do not have the common form."""
    config = model.config
    family = family_of(config)
    names = family.block
    if names is None or not _known(config, names):
        return None
    blocks = feed_forwards(model)
    if not _plain(model, blocks, names):
        return None
    attention: Any = blocks[0].layer.get_submodule(names.attention.module)
    heads = int(config.num_attention_heads)
    head: Any = model.get_output_embeddings()
    layers = zip(blocks, _rotaries(model, blocks, names.positions), windows(family, config, len(blocks)), strict=True)
    embedding = table(model.get_input_embeddings())
    return Weights(
        dtype=embedding.dtype,
        embedding=embedding,
        embedding_scale=_embedding_scale(config, names, embedding.dtype),
        positions=_learned_positions(model, names.positions),
        residual_scale=multiplier(config, names.multipliers.residual),
        layers=[_layer(block, names, rotary, window) for block, rotary, window in layers],
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(attention.head_dim),
        scale=float(attention.scaling),
        query_growth=_query_growth(config, names.positions),
        score_cap=config.attn_logit_softcapping if names.attention.score_cap else None,
        activation=_activation(config, names),
        final_norm=_norm(model.get_submodule(names.norms.final), names.norms),
        head=Projection((by_output(head),), exact(head, "bias")),
        logit_divisor=logit_divisor(family, config),
        logit_cap=logit_cap(family, config),
        gates=GatesByInput.of(model),
    )


def _known(config: PreTrainedConfig, names: DecoderBlock) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    rope_types = {part.get("rope_type", "default") for part in _parts(rope)}
    # Only OPT 350M has its norms after attention and FF block.
    norms_first = getattr(config, "do_layer_norm_before", True)
    return bool(rope_types <= {*ROPE_TYPES} and norms_first and _activation(config, names) in ACTIVATIONS)


def _plain(model: PreTrainedModel, blocks: Sequence[FeedForward], names: DecoderBlock) -> bool:
    """Whether every module computes only what the form says; adapters and quantised projections compute more."""
    projections = (*names.attention.query_key_value, names.attention.output)
    try:
        linear = [block.layer.get_submodule(name) for block in blocks for name in projections]
        normed = [block.layer.get_submodule(name) for block in blocks for name in names.norms.in_layer()]
        normed.append(model.get_submodule(names.norms.final))
    except AttributeError:
        return False
    linear.append(model.get_output_embeddings())
    width = table(model.get_input_embeddings()).columns
    return (
        all(type(module) in (nn.Linear, MatrixLinear) for module in linear)
        and all(type(m) is nn.LayerNorm or type(m).__name__.endswith("RMSNorm") for m in normed)
        and all(isinstance(getattr(module, "weight", None), Tensor) for module in normed)
        and width == model.config.hidden_size
    )


def _layer(block: FeedForward, names: DecoderBlock, rotary: Rotary | None, window: int | None) -> Layer:
    def norm(name: str | None) -> Norm | None:
        return _norm(block.layer.get_submodule(name), names.norms) if name else None

    output = block.layer.get_submodule(names.attention.output)
    return Layer(
        before_attention=norm(names.norms.before_attention),
        query_key_value=_merged_([block.layer.get_submodule(name) for name in names.attention.query_key_value]),
        query_norm=norm(names.norms.query),
        key_norm=norm(names.norms.key),
        rotary=rotary,
        window=window,
        output=Projection((by_output(output),), exact(output, "bias")),
        after_attention=norm(names.norms.after_attention),
        before_feed_forward=norm(names.norms.before_feed_forward),
        feed_forward=_feed_forward(block),
        after_feed_forward=norm(names.norms.after_feed_forward),
    )


def _feed_forward(block: FeedForward) -> FeedForwardWeights:
    expand = _merged_(block.expand)
    gated = expand.outputs == 2 * block.width
    # By neuron already, see ``layout``; a copy only if they are not.
    return FeedForwardWeights(expand, block.down.contiguous(), exact(block.contract, "bias"), gated)


def _merged_(projections: Sequence[nn.Module]) -> Projection:
    """One matrix for several that read the same input, if their formats allow it.

    The originals become views of it, so that all trees share it.
    """
    biases = [exact(projection, "bias") for projection in projections]
    present = [bias for bias in biases if bias is not None]
    bias = torch.cat(present) if present else None
    parts = [by_output(projection) for projection in projections]
    if len({part.format for part in parts}) > 1 or not all(part.merges for part in parts):
        return Projection(parts, bias)
    matrix = joined(parts)
    merged_(projections, matrix)
    return Projection((matrix,), bias)


def _norm(module: nn.Module, names: NormNames) -> Norm:
    weight = exact(module, "weight")
    assert weight is not None
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    return Norm(
        weight=weight.float() + 1 if names.plus_one else weight,
        bias=exact(module, "bias"),
        eps=float(eps),  # type: ignore[arg-type]
        centred=isinstance(module, nn.LayerNorm),
    )


def _rotaries(model: PreTrainedModel, blocks: Sequence[FeedForward], names: Positions) -> list[Rotary | None]:
    """The rotary embedding of each layer. Layers of one kind share an object, so angles are computed once a token."""
    if names.rotary is None:
        return [None] * len(blocks)
    module = model.get_submodule(names.rotary)
    # One set of frequencies for all, or one for each kind of layer.
    kinds = [""] * len(blocks) if hasattr(module, "inv_freq") else [f"{kind}_" for kind in model.config.layer_types]
    found = {kind: _rotary(module, kind, names) for kind in kinds}
    turns = [True] * len(blocks) if names.rotary_layers is None else getattr(model.config, names.rotary_layers)
    return [found[kind] if turn else None for kind, turn in zip(kinds, turns[: len(blocks)], strict=True)]


def _rotary(module: nn.Module, kind: str, names: Positions) -> Rotary:
    frequencies_R = _tensor(getattr(module, f"{kind}inv_freq")).float()
    return Rotary(frequencies_R, float(getattr(module, f"{kind}attention_scaling")), names.interleaved)


def _query_growth(config: PreTrainedConfig, names: Positions) -> QueryGrowth | None:
    if names.query_growth is None:
        return None
    rate, context = (config.rope_parameters[key] for key in names.query_growth)
    return QueryGrowth(float(rate), int(context))


def _embedding_scale(config: PreTrainedConfig, names: DecoderBlock, dtype: torch.dtype) -> float:
    scale = multiplier(config, names.multipliers.embedding)
    if names.multipliers.root_of_width:
        scale *= float(torch.tensor(config.hidden_size**0.5, dtype=dtype))
    return scale


def _learned_positions(model: PreTrainedModel, names: Positions) -> Tensor | None:
    if names.learned is None:
        return None
    module = model.get_submodule(names.learned)
    return _tensor(module.weight)[int(getattr(module, "offset", 0)) :]


def _activation(config: PreTrainedConfig, names: DecoderBlock) -> Any:
    name = getattr(config, names.activation)
    return ALIASES.get(name, name)


def _parts(rope: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each kind of layer, or of all layers."""
    return [part for part in rope.values() if isinstance(part, dict)] or [rope]


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach()
