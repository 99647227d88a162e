"""What a token costs: how many parameters it uses, and how many bytes of weights, keys and values it reads.

All of them, or those left when neurons are removed.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.model.families import feed_forwards, linear_weight, windows
from griffin.neurons import Kept, kept_count


@dataclass(frozen=True, slots=True)
class Accounting:
    """Parameter and byte counts of one model; tied weights count once. Works on the meta device.

    total: all parameters.
    layers, width: L and F.
    per_neuron: parameters that one neuron of one layer owns: its row of each expanding projection,
        their biases, and its column of the contracting one.
    per_gate: those of them that tell whether the neuron acts on a token, see ``neurons.Acting``.
    weight_bytes: what the full model reads for one token: all but the tables of which it looks up one row.
        An embedding that is the head as well is read whole.
    bytes_per_neuron: of ``per_neuron`` parameters.
    kv_bytes: keys and values of one token in one layer.
    windows: for each layer, how many latest tokens it attends to; None for all.
    """

    total: int
    layers: int
    width: int
    per_neuron: int
    per_gate: int = 0
    weight_bytes: int = 0
    bytes_per_neuron: int = 0
    kv_bytes: int = 0
    windows: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Accounting":
        blocks = feed_forwards(model)
        expanding = [p for projection in blocks[0].expand for p in projection.parameters()]
        owned = [*expanding, linear_weight(blocks[0].contract)]
        width = blocks[0].width
        return cls(
            total=parameter_count(model),
            layers=len(blocks),
            width=width,
            per_neuron=sum(parameter.numel() for parameter in owned) // width,
            per_gate=sum(parameter.numel() for parameter in expanding) // (width * blocks[0].parts),
            weight_bytes=sum(p.nbytes for p in model.parameters()) - _bytes_not_looked_up(model),
            bytes_per_neuron=sum(parameter.nbytes for parameter in owned) // width,
            kv_bytes=2 * _kv_width(model.config) * owned[-1].element_size(),
            windows=tuple(windows(model.config, len(blocks))),
        )

    @property
    def neurons(self) -> int:
        """FF neurons of all layers."""
        return self.layers * self.width

    @property
    def feed_forward(self) -> int:
        """Parameters that belong to some neuron."""
        return self.neurons * self.per_neuron

    @property
    def bytes_per_parameter(self) -> float:
        """Of one that belongs to a neuron."""
        return self.bytes_per_neuron / self.per_neuron

    def kept(self, sparsity: float) -> int:
        """FF neurons of all layers that stay when the fraction ``sparsity`` is removed."""
        return self.layers * kept_count(self.width, sparsity)

    def active(self, kept: int, acting: int | None = None) -> int:
        """Parameters that take part in a token when all layers together keep that many neurons.

        Args:
            acting: of the kept neurons, those whose gates let them act; all if None.
        """
        resting = 0 if acting is None else kept - acting
        return self.total - (self.neurons - kept) * self.per_neuron - resting * (self.per_neuron - self.per_gate)

    def active_with(self, kept: Kept) -> int:
        """Parameters that take part in a token of these neurons, on average."""
        return self.active(kept.count, kept.acting_count)

    def bytes_per_token(self, kept: int, context_tokens: int) -> int:
        """The least that one decode step has to read: its weights, and the keys and values of its context."""
        weights = self.weight_bytes - (self.neurons - kept) * self.bytes_per_neuron
        attended = sum(min(context_tokens, window or context_tokens) for window in self.windows)
        return weights + self.kv_bytes * attended


def parameter_count(model: nn.Module) -> int:
    # parameters() yields a tied tensor once.
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes_not_looked_up(model: PreTrainedModel) -> int:
    """Of token and position tables that are no head: all rows but one."""
    head = model.get_output_embeddings()
    read_whole = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(table.nbytes - table[0].nbytes for key, table in tables.items() if key not in read_whole)


def _kv_width(config: PreTrainedConfig) -> int:
    """Numbers in one token's keys of one layer."""
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return size
    return size * int(getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads)
