"""What a token costs: how many parameters it uses, and how many bytes of weights, keys and values it reads.

All of them, or those left when neurons are removed.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.model.families import FeedForward, family_of, feed_forwards, windows
from griffin.model.matrix.modules import MatrixEmbedding, matrices, table, weight_key
from griffin.neurons import Kept, kept_count


@dataclass(frozen=True, slots=True)
class NeuronBytes:
    """What a token reads of one neuron in one layer. Layers may hold their weights in different formats.

    gate: its row of the gate's projection and that row's bias. A resting neuron reads only these, see
        ``neurons.Acting``. In a block without a gate, the one expanding projection takes the gate's place.
    others: its other rows and biases.
    widening: how many bytes more its contracting row takes as plain numbers. A correction needs plain numbers.
    """

    gate: int
    others: int
    widening: int = 0

    @classmethod
    def of(cls, block: FeedForward) -> "NeuronBytes":
        gate, *up = (part.row_bytes for part in block.parts_FD)
        biases = sum(p.bias.nbytes for p in block.expand if isinstance(p.bias, Tensor))
        per_row = biases // block.width // block.parts
        plain = block.down.columns * block.down.dtype.itemsize
        return cls(
            gate=gate + per_row,
            others=sum(up) + len(up) * per_row + block.down.row_bytes,
            widening=plain - block.down.row_bytes,
        )

    @property
    def whole(self) -> int:
        """All its rows and biases."""
        return self.gate + self.others


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
        Parts of a matrix that its rows share are always read.
    neuron_bytes: what is read of one neuron, for each layer.
    kv_bytes: keys and values of one token in one layer.
    windows: for each layer, how many latest tokens it attends to; None for all.
    """

    total: int
    layers: int
    width: int
    per_neuron: int
    per_gate: int = 0
    weight_bytes: int = 0
    neuron_bytes: tuple[NeuronBytes, ...] = ()
    kv_bytes: int = 0
    windows: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Accounting":
        blocks = feed_forwards(model)
        first = blocks[0]
        biases = [p.bias for p in first.expand if isinstance(p.bias, Tensor)]
        rows = [*first.parts_FD, first.down]
        own_biases = sum(bias.numel() for bias in biases) // first.width
        gate = first.down.columns + own_biases // first.parts
        return cls(
            total=parameter_count(model),
            layers=len(blocks),
            width=first.width,
            per_neuron=sum(matrix.columns for matrix in rows) + own_biases,
            per_gate=gate,
            weight_bytes=_all_bytes(model) - _bytes_not_looked_up(model),
            neuron_bytes=tuple(map(NeuronBytes.of, blocks)),
            kv_bytes=2 * _kv_width(model.config) * first.down.dtype.itemsize,
            windows=tuple(windows(family_of(model.config), model.config, len(blocks))),
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
    def feed_forward_bytes(self) -> int:
        """Of those parameters."""
        return self.width * sum(each.whole for each in self.neuron_bytes)

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

    def bytes_per_token(self, kept: Kept | None, *, corrected: bool | None = None) -> int:
        """Bytes of weights that one token of these neurons reads, on average; None is the full model.

        The acting neurons are known for all layers together. Each layer lets the same fraction of its own act.

        Args:
            corrected: whether the contracting rows are corrected; None: as ``kept`` says.
        """
        if kept is None:
            return self.weight_bytes
        if corrected is None:
            corrected = kept.correction is not None
        acting, read = kept.acting_count / kept.count, float(self.weight_bytes)
        for count, each in zip(kept.counts, self.neuron_bytes, strict=True):
            others = each.others + each.widening * corrected
            read += count * (each.gate + acting * others) - self.width * each.whole
        return round(read)

    def bytes_per_token_at(self, sparsity: float) -> int:
        """The same, where every layer keeps as many neurons and all of them act."""
        return self._weights_read(self.kept(sparsity))

    def bytes_per_step(self, kept: int, context_tokens: int) -> int:
        """The least that one decode step has to read: its weights, and the keys and values of its context.

        Args:
            kept: neurons of all layers together, as many in each.
        """
        attended = sum(min(context_tokens, window or context_tokens) for window in self.windows)
        return self._weights_read(kept) + self.kv_bytes * attended

    def _weights_read(self, kept: int) -> int:
        return self.weight_bytes - self.feed_forward_bytes * (self.neurons - kept) // self.neurons


def parameter_count(model: nn.Module) -> int:
    """Numbers of a model; tied ones count once. Of a matrix that is stored in fewer bits, the numbers it stands for."""
    stored = sum(matrix.row_count * matrix.columns for matrix in matrices(model))
    # parameters() yields a tied tensor once.
    return stored + sum(parameter.numel() for parameter in model.parameters())


def _all_bytes(model: nn.Module) -> int:
    return sum(matrix.bytes for matrix in matrices(model)) + sum(parameter.nbytes for parameter in model.parameters())


def _bytes_not_looked_up(model: PreTrainedModel) -> int:
    """Of token and position tables that are no head: all rows but one."""
    head = model.get_output_embeddings()
    read_whole = weight_key(head) if head is not None else None
    tables = {weight_key(m): table(m) for m in model.modules() if isinstance(m, nn.Embedding | MatrixEmbedding)}
    return sum(found.bytes - found.row_bytes for key, found in tables.items() if key != read_whole)


def _kv_width(config: PreTrainedConfig) -> int:
    """Numbers in one token's keys of one layer."""
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return size
    return size * int(getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads)
