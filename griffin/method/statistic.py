"""Statistics of a prompt, computed from its tokens' feed-forward (FF) activations and inputs.

Shapes: L layers, T tokens, D model width, F feed-forward neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from griffin.model.families import FeedForward

# With few tokens, the mean of one neuron is unreliable. So many average tokens are added.
FEW_TOKENS = 4


def relative_energy(z_TF: Tensor) -> Tensor:
    """Sum over tokens of the squared activations, each token scaled to unit length: fp32 ``(F,)``.

    This is s squared of equation 1 in the paper. It is additive over any split of the tokens.
    A token whose activations are all zero has no direction and adds nothing.
    """
    own_TF = z_TF.float()
    norms_T = torch.linalg.vector_norm(own_TF, dim=1)
    # The square of the reciprocal is infinite if a number's own square is not a normal number.
    inverse_T = torch.where(norms_T > torch.finfo(torch.float32).tiny ** 0.5, norms_T.reciprocal(), 0.0)
    return inverse_T.square() @ _squares(own_TF, z_TF)


def sum_of_squares(up_TF: Tensor) -> Tensor:
    """Sum over tokens of the squares: fp32 ``(F,)``.

    On a CPU, ``vector_norm`` over the tokens takes 5 to 20 times as long: it goes from one column to the next.
    """
    return _squares(up_TF.float(), up_TF).sum(dim=0)


def _squares(own_TF: Tensor, given_TF: Tensor) -> Tensor:
    """Of given numbers in fp32. They overwrite a copy if there is one: most of the cost is writing to new memory."""
    return own_TF.square() if own_TF is given_TF else own_TF.square_()


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Activations of some tokens in one layer's FF block.

    x: the block's input, ``(T, D)``.
    z: the input of the contracting projection, ``(T, F)``.
    gate: the input of the activation function, ``(T, F)``.
    up: the factor on the activation function's value, ``(T, F)``; None in a block without a gate.
    """

    x: Tensor
    z: Tensor
    gate: Tensor
    up: Tensor | None = None

    def __getitem__(self, tokens: slice) -> "Activations":
        return self._each(lambda values: values[tokens])

    def __len__(self) -> int:
        return len(self.x)

    def copied(self) -> "Activations":
        """A copy in its own memory: a view would keep the whole chunk alive."""
        return self._each(torch.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Activations":
        up = None if self.up is None else change(self.up)
        return Activations(change(self.x), change(self.z), change(self.gate), up)

    @staticmethod
    def joined(pieces: Sequence["Activations"]) -> "Activations":
        """The pieces joined in order. A single piece, the usual case, is not copied."""
        if len(pieces) == 1:
            return pieces[0]
        columns = zip(*((piece.x, piece.z, piece.gate, piece.up) for piece in pieces), strict=True)
        return Activations(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """All counts of a sequence's tokens, fp32. The sums are additive over any split of the tokens.

    energy_LF: the relative energy of each neuron's activation, see ``relative_energy``.
    inputs_LD: sum of the inputs. This and the next two leave out the first token, which is unlike all others.
    gates_LF: sum of the inputs of the activation functions.
    squares_LF: sum of the squares of the factors ``up``; zeros in blocks without a gate.
    tokens: number of counted tokens, including the first.
    latest: for each layer the activations of the latest tokens, if they are kept; these are not additive.
    """

    energy_LF: Tensor
    inputs_LD: Tensor
    gates_LF: Tensor
    squares_LF: Tensor
    tokens: int
    latest: Sequence[Activations] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the sums, without the latest tokens."""
        return sum(values.nbytes for values in self.values)

    @property
    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.energy_LF, self.inputs_LD, self.gates_LF, self.squares_LF


class PromptStatistic:
    """The running sums of one sequence, and the activations of its latest tokens if a request needs them."""

    def __init__(self, blocks: Sequence[FeedForward]) -> None:
        device, layers = blocks[0].down.device, len(blocks)
        self._blocks = blocks

        def zeros(columns: int) -> Tensor:
            return torch.zeros(layers, columns, dtype=torch.float32, device=device)

        width = blocks[0].width
        self._sums = Sums(zeros(width), zeros(blocks[0].down.columns), zeros(width), zeros(width), 0)
        self._tokens, self._kept_tokens = 0, 0
        # For the current layer and chunk: the block's input, and the outputs of its expanding projections.
        self._input: Tensor | None = None
        self._expanded: list[Tensor] = []
        # For each layer the latest tokens' activations, in the pieces in which they came.
        self._latest: list[list[Activations]] = [[] for _ in blocks]

    def reset(self, latest: int = 0) -> None:
        """Begin another sequence.

        Args:
            latest: number of latest tokens whose activations are kept.
        """
        for sums in self._sums.values:
            sums.zero_()
        self._tokens, self._kept_tokens, self._latest = 0, latest, [[] for _ in self._blocks]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While open, every token that passes through the model's FF blocks is counted."""
        with self._watching(self._count):
            yield

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Like ``collecting``, but tokens are counted only when the function is called, with how many to count.

        The function may be called after the block has ended.
        """
        held_L: list[list[Activations]] = [[] for _ in self._blocks]

        def count(tokens: int) -> None:
            self.count([Activations.joined(held)[:tokens] for held in held_L])

        with self._watching(lambda layer, seen: held_L[layer].append(seen)):
            yield count

    @torch.inference_mode()
    def count(self, seen_L: Sequence[Activations]) -> None:
        """Count some tokens.

        Args:
            seen_L: their activations, for each layer.
        """
        for layer, seen in enumerate(seen_L):
            self._count(layer, seen)

    @contextmanager
    def _watching(self, seen: Callable[[int, Activations], None]) -> Iterator[None]:
        hooks = []
        for layer, block in enumerate(self._blocks):
            hooks.append(block.contract.register_forward_pre_hook(self._hook(layer, block, seen)))
            hooks.append(block.expand[0].register_forward_pre_hook(self._enter))
            hooks += [projection.register_forward_hook(self._remember) for projection in block.expand]
        self._expanded = []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def sums(self, *, latest: bool = True) -> Sums:
        """A copy of all counts, with the latest tokens' activations if ``latest``."""
        known = self.latest() if latest else ()
        energy_LF, inputs_LD, gates_LF, squares_LF = (values.clone() for values in self._sums.values)
        return Sums(energy_LF, inputs_LD, gates_LF, squares_LF, self._tokens, known)

    @torch.inference_mode()
    def resume(self, sums: Sums) -> None:
        """Continue from such a copy."""
        for own, known in zip(self._sums.values, sums.values, strict=True):
            own.copy_(known)
        self._tokens, self._latest = sums.tokens, [[] for _ in self._blocks]
        for pieces, latest in zip(self._latest, sums.latest, strict=False):
            pieces.append(latest)

    def value(self) -> Tensor:
        """s of equation 1: fp32 ``(L, F)``."""
        return self._sums.energy_LF.sqrt()

    def input_means(self) -> Tensor:
        """The mean input of each layer: fp32 ``(L, D)``, without the first token.

        Zeros if there are fewer than two others: a single token does not differ from its own mean.
        """
        return self._sums.inputs_LD / self.averaged if self.averaged else torch.zeros_like(self._sums.inputs_LD)

    def gate_means(self) -> Tensor:
        """The mean input of each activation function, see ``input_means``: fp32 ``(L, F)``.

        Since the gate's projection is linear, this is its output for the mean input; for zeros, its bias.
        """
        if not self.averaged:
            return torch.stack([_gate_bias(block).to(self._sums.gates_LF) for block in self._blocks])
        return self._sums.gates_LF / self.averaged

    def up_sizes(self) -> Tensor:
        """The usual size (rms) of the factor on each gate, see ``input_means``: fp32 ``(L, F)``.

        A few tokens are added, on which all neurons of a layer have the layer's mean.
        """
        tokens = max(1, self._tokens - 1)
        mean_L1 = self._sums.squares_LF.mean(dim=1, keepdim=True) / tokens
        return ((self._sums.squares_LF + FEW_TOKENS * mean_L1) / (tokens + FEW_TOKENS)).sqrt()

    @property
    def tokens(self) -> int:
        """Number of counted tokens, including the first."""
        return self._tokens

    @property
    def averaged(self) -> int:
        """Number of tokens in the means: at least 2, or 0."""
        return self._tokens - 1 if self._tokens > 2 else 0

    def latest(self) -> Sequence[Activations]:
        """For each layer the activations of the latest tokens, without the first token unless it is the only one.

        Empty if none are kept.
        """
        if not all(self._latest):
            return ()
        return [Activations.joined(pieces)[-self._kept_tokens :] for pieces in self._latest]

    def _count(self, layer: int, seen: Activations) -> None:
        # The first token is unlike all others.
        rest = seen if self._tokens else seen[1:]
        # The layers of a model may be on several devices.
        sums = self._sums
        device = sums.energy_LF.device
        sums.energy_LF[layer] += relative_energy(seen.z).to(device)
        sums.inputs_LD[layer] += rest.x.sum(dim=0, dtype=torch.float32).to(device)
        sums.gates_LF[layer] += rest.gate.sum(dim=0, dtype=torch.float32).to(device)
        if rest.up is not None:
            sums.squares_LF[layer] += sum_of_squares(rest.up).to(device)
        if self._kept_tokens:
            self._hold(self._latest[layer], rest if len(rest) else seen)
        if layer == len(self._blocks) - 1:
            self._tokens += len(seen)

    def _hold(self, pieces: list[Activations], seen: Activations) -> None:
        if self._tokens == 1:
            # There is only the first token.
            pieces.clear()
        pieces.append(seen[-self._kept_tokens :].copied())
        if sum(map(len, pieces)) > 2 * self._kept_tokens:
            pieces[:] = [Activations.joined(pieces)[-self._kept_tokens :].copied()]

    def _hook(self, layer: int, block: FeedForward, seen: Callable[[int, Activations], None]) -> Any:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (x, self._input), (expanded, self._expanded) = (self._input, None), (self._expanded, [])
            assert x is not None
            gate_up = [part for output in expanded for part in torch.split(output, block.width, dim=-1)]
            seen(layer, Activations(x, _by_token(inputs[0]), *gate_up))

        return look

    def _enter(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = _by_token(inputs[0])

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._expanded.append(_by_token(output))


def _gate_bias(block: FeedForward) -> Tensor:
    """``(F,)``; zeros if there is no bias."""
    bias = block.expand[0].bias
    return bias[: block.width] if isinstance(bias, Tensor) else torch.zeros(block.width)


def _by_token(values: Tensor) -> Tensor:
    """Activations as ``(T, F)``: some families flatten before a projection, others keep ``(1, T, F)``."""
    return values.detach().reshape(-1, values.shape[-1])


def magnitude(blocks: Sequence[FeedForward]) -> Tensor:
    """The paper's static baseline (5.1): the row norms of W_1, times those of W_g where gated. fp32 ``(L, F)``."""
    rows = [_row_norms(block) for block in blocks]
    return torch.stack([row_F.to(rows[0].device) for row_F in rows])


def _row_norms(block: FeedForward) -> Tensor:
    return torch.stack([part.row_norms() for part in block.parts_FD]).prod(dim=0)
