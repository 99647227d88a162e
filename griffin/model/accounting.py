"""What a token costs: the parameters that it uses, and the bytes of weights, keys and values that it reads.

For the full model, or with some neurons removed.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from griffin.model.families import FeedForward, family_of, feed_forwards, windows
from griffin.model.matrix.modules import MatrixEmbedding, matrices, table, weight_key
from griffin.neurons import Chosen, Kept, kept_count
from griffin.thresholds import Shares


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Bytes that a token reads of one layer's FF block. Layers may hold their weights in different formats.

    gate: codes of the gate's matrix; in a block without a gate, of the only expanding matrix.
    gate_scales: the rest of that matrix. If inputs are skipped, scales are still read completely.
    up: the other expanding matrix.
    down: the contracting matrix, without what its rows share.
    biases: of the expanding projections.
    """

    gate: int
    gate_scales: int
    up: int
    down: int
    biases: int

    @classmethod
    def of(cls, block: FeedForward) -> "BlockBytes":
        gate, *up = block.parts_FD
        return cls(
            gate=gate.code_bytes,
            gate_scales=gate.row_bytes * gate.row_count - gate.code_bytes,
            up=sum(part.row_bytes * part.row_count for part in up),
            down=block.down.row_bytes * block.width,
            biases=sum(p.bias.nbytes for p in block.expand if isinstance(p.bias, Tensor)),
        )

    @property
    def by_neuron(self) -> int:
        """Bytes that belong to some neuron."""
        return self.gate + self.gate_scales + self.up + self.down + self.biases

    def skipped(self, shares: Shares) -> float:
        """Bytes that are not read if each token picks these shares."""
        return (1 - shares.gate) * self.gate + (1 - shares.up) * self.up + (1 - shares.down) * self.down


@dataclass(frozen=True, slots=True)
class Accounting:
    """Parameter and byte counts of one model; tied weights count once. Works on the meta device.

    total: all parameters.
    layers, width: L and F.
    per_neuron: parameters that one neuron of one layer owns: its row of each expanding projection,
        their biases, and its column of the contracting one.
    per_bias: how many of them are biases.
    gated: whether blocks have a gate.
    weight_bytes: bytes that the full model reads for one token: everything except tables from which it reads one row.
        An embedding that is also the head is read completely.
        Parts of a matrix that its rows share are always read.
    block_bytes: bytes read of the FF block, for each layer.
    kv_bytes: keys and values of one token in one layer.
    windows: for each layer, the number of latest tokens that it attends to; None: all.
    """

    total: int
    layers: int
    width: int
    per_neuron: int
    per_bias: int = 0
    gated: bool = True
    weight_bytes: int = 0
    block_bytes: tuple[BlockBytes, ...] = ()
    kv_bytes: int = 0
    windows: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Accounting":
        blocks = feed_forwards(model)
        first = blocks[0]
        biases = [p.bias for p in first.expand if isinstance(p.bias, Tensor)]
        rows = [*first.parts_FD, first.down]
        own_biases = sum(bias.numel() for bias in biases) // first.width
        return cls(
            total=parameter_count(model),
            layers=len(blocks),
            width=first.width,
            per_neuron=sum(matrix.columns for matrix in rows) + own_biases,
            per_bias=own_biases,
            gated=first.activation is not None,
            weight_bytes=_all_bytes(model) - _bytes_not_looked_up(model),
            block_bytes=tuple(map(BlockBytes.of, blocks)),
            kv_bytes=2 * _kv_width(model.config) * first.down.dtype.itemsize,
            windows=tuple(windows(family_of(model.config), model.config, len(blocks))),
        )

    @property
    def neurons(self) -> int:
        """Number of FF neurons, over all layers."""
        return self.layers * self.width

    @property
    def feed_forward(self) -> int:
        """Number of parameters that belong to some neuron."""
        return self.neurons * self.per_neuron

    @property
    def feed_forward_bytes(self) -> int:
        """Bytes of the parameters that belong to some neuron."""
        return sum(each.by_neuron for each in self.block_bytes)

    def kept(self, sparsity: float) -> int:
        """Number of FF neurons that stay, over all layers, when the fraction ``sparsity`` is removed."""
        return self.layers * kept_count(self.width, sparsity)

    def active(self, kept: int) -> int:
        """Parameters that a token uses when all layers together keep so many neurons."""
        return self.total - (self.neurons - kept) * self.per_neuron

    def active_at(self, shares: Shares) -> int:
        """Parameters that a token uses when it picks these shares of the FF matrices. Biases are always used."""
        matrices = 3 if self.gated else 2
        width = (self.per_neuron - self.per_bias) // matrices
        skipped = (1 - shares.gate) + (1 - shares.up) * self.gated + (1 - shares.down)
        return self.total - round(self.neurons * width * skipped)

    def active_with(self, chosen: Chosen, shares: Shares | None = None) -> int:
        """Parameters that a token uses with such a choice.

        Args:
            shares: shares that tokens have read by thresholds; None: as planned.
        """
        return self.active(chosen.count) if isinstance(chosen, Kept) else self.active_at(shares or chosen.planned)

    def bytes_per_token(self, chosen: Chosen | None, shares: Shares | None = None) -> int:
        """Bytes of weights that one token reads with such a choice, on average; None is the full model.

        Args:
            shares: shares that tokens have read by thresholds; None: as planned.
        """
        if chosen is None:
            return self.weight_bytes
        if isinstance(chosen, Kept):
            blocks = zip(chosen.counts, self.block_bytes, strict=True)
            return self.weight_bytes - round(
                sum((self.width - count) * each.by_neuron / self.width for count, each in blocks)
            )
        return self.bytes_at(shares or chosen.planned)

    def bytes_at(self, shares: Shares) -> int:
        """Bytes of weights when each token picks these shares of the FF matrices."""
        return self.weight_bytes - round(sum(each.skipped(shares) for each in self.block_bytes))

    def bytes_per_token_at(self, sparsity: float) -> int:
        """Bytes of weights when every layer keeps the same number of neurons."""
        return self._weights_read(self.kept(sparsity))

    def bytes_per_step(self, kept: int, context_tokens: int) -> int:
        """The fewest bytes that one decode step must read: its weights, and the keys and values of its context.

        Args:
            kept: neurons of all layers together, the same number in each.
        """
        attended = sum(min(context_tokens, window or context_tokens) for window in self.windows)
        return self._weights_read(kept) + self.kv_bytes * attended

    def _weights_read(self, kept: int) -> int:
        return self.weight_bytes - self.feed_forward_bytes * (self.neurons - kept) // self.neurons


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model; tied ones count once. A matrix of codes counts the numbers that they represent."""
    stored = sum(matrix.row_count * matrix.columns for matrix in matrices(model))
    # parameters() yields a tied tensor once.
    return stored + sum(parameter.numel() for parameter in model.parameters())


def _all_bytes(model: nn.Module) -> int:
    return sum(matrix.bytes for matrix in matrices(model)) + sum(parameter.nbytes for parameter in model.parameters())


def _bytes_not_looked_up(model: PreTrainedModel) -> int:
    """Bytes of token and position tables that are not the head: all rows but one."""
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
