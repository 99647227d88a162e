"""Statistics, which say how much a neuron matters: to one prompt (flocking), or by its weights alone (magnitude).

Shapes: L layers, T tokens, F feed-forward neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from griffin.model.families import FeedForward

# The outputs ``(T, outputs)`` of each expanding projection for some tokens, or the contracting one's input alone.
Seen = Sequence[Tensor]


def relative_energy(z_TF: Tensor) -> Tensor:
    """Sum over tokens of the squared activations, each token scaled to unit length: fp32 ``(F,)``.

    This is s squared of equation 1 in the paper. It is additive over any split of the tokens.
    A token whose activations are all zero has no direction and adds nothing.
    """
    energy_F, *_ = sums_of(z_TF)
    return energy_F


def sums_of(z_TF: Tensor, skipped: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What these tokens add to the three rows of ``Sums.values_3LF`` and to ``Sums.weight_L``.

    Args:
        skipped: so many first tokens add to the first row alone.
    """
    copied = z_TF.dtype != torch.float32
    z_TF = z_TF.float()
    inverse_T = inverse_lengths(z_TF)
    weights_2T = torch.stack([inverse_T.square(), inverse_T])
    weights_2T[1, :skipped] = 0
    sum_F = weights_2T[1] @ z_TF
    # In place where it is a copy: most of the cost is touching new memory.
    energy_F, square_F = weights_2T @ (z_TF.square_() if copied else z_TF.square())
    return energy_F, sum_F, square_F, weights_2T[1].sum()


def inverse_lengths(z_TF: Tensor) -> Tensor:
    """1 / ||z|| of each token, ``(T,)``; 0 where all activations are 0."""
    norms_T = torch.linalg.vector_norm(z_TF, dim=1)
    # The square of the reciprocal is infinite for numbers whose own square is not a normal number.
    return torch.where(norms_T > torch.finfo(torch.float32).tiny ** 0.5, norms_T.reciprocal(), 0.0)


def centred_rows(z_TF: Tensor, mean_F: Tensor) -> Tensor:
    """(z - mean) / sqrt||z|| of each token, divided by sqrt T: together they weigh as one token. fp32 ``(T, F)``."""
    z_TF = z_TF.float()
    return (z_TF - mean_F) * (inverse_lengths(z_TF)[:, None] / max(1, len(z_TF))).sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """The activations of some tokens in one layer.

    given: what each neuron's activation function gives, ``(T, F)``.
    up: the factor that this is multiplied by, ``(T, F)``; None where blocks have no gate.
    """

    given: Tensor
    up: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """What enters the contracting projection, ``(T, F)``."""
        return self.given if self.up is None else self.given * self.up

    def of(self, kept_k: Tensor) -> "Activations":
        """The activations of these neurons alone, ``(T, k)``."""
        given_Tk = self.given.index_select(1, kept_k.to(self.given.device))
        return Activations(given_Tk, None if self.up is None else self.up.index_select(1, kept_k.to(self.up.device)))


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Everything that was counted of a sequence's tokens, fp32. All but ``latest`` is additive over any split of them.

    values_3LF: for each neuron its relative energy, see ``relative_energy``; then the sums of z / ||z|| and of
        z^2 / ||z||. z is the neuron's activation and ||z|| the length of the layer's activations. These two sums leave
        out the first token, whose activations are unlike all others.
    weight_L: the sum of 1 / ||z||, without the first token.
    tokens: how many were counted, with the first.
    latest: for each layer the last tokens' activations, where they are kept: the outputs of the expanding projections
        ``(T, 2 F)``, or without a gate the contracting projection's input ``(T, F)``.
    """

    values_3LF: Tensor
    weight_L: Tensor
    tokens: int
    latest: Sequence[Tensor] = ()

    @property
    def bytes(self) -> int:
        return self.values_3LF.nbytes + self.weight_L.nbytes + sum(known.nbytes for known in self.latest)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over tokens of each neuron's activation and its square, each token weighted by 1 / ||z||, as in ``Sums``.

    With this weight, tokens with large and with small activations matter about equally.

    sum_LF, square_LF: ``(L, F)``.
    weight_L: the sum of the weights.
    tokens: how many.
    """

    sum_LF: Tensor
    square_LF: Tensor
    weight_L: Tensor
    tokens: int

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.sum_LF + other.sum_LF,
            self.square_LF + other.square_LF,
            self.weight_L + other.weight_L,
            self.tokens + other.tokens,
        )

    def mean(self) -> Tensor:
        """The weighted mean: ``(L, F)``."""
        return self.sum_LF / self.weight_L[:, None].clamp_min(torch.finfo(torch.float32).tiny)

    def variance(self) -> Tensor:
        """The variance around the mean, a mean over tokens in units of ||z||: ``(L, F)``."""
        return (self.square_LF - self.mean() * self.sum_LF).clamp_(min=0) / max(1, self.tokens)

    def square(self) -> Tensor:
        """As ``variance``, but around 0: ``(L, F)``."""
        return self.square_LF / max(1, self.tokens)


class FlockingStatistic:
    """The running statistic of one sequence, collected from the inputs of the contracting projections.

    For the latest tokens it also collects the outputs of the expanding projections, where a request needs them.
    """

    def __init__(self, blocks: Sequence[FeedForward]) -> None:
        device = blocks[0].down.device
        self._blocks = blocks
        self._values_3LF = torch.zeros(3, len(blocks), blocks[0].width, dtype=torch.float32, device=device)
        self._weight_L = torch.zeros(len(blocks), dtype=torch.float32, device=device)
        self._tokens, self._kept_tokens = 0, 0
        # The outputs of the expanding projections in the layer and chunk that run now.
        self._expanded: list[Tensor] = []
        # For each layer the latest tokens' activations, in pieces as they came.
        self._latest: list[list[Tensor]] = [[] for _ in blocks]

    def reset(self, latest: int = 0) -> None:
        """Begin another sequence.

        Args:
            latest: keep the activations of so many of its latest tokens.
        """
        self._values_3LF.zero_()
        self._weight_L.zero_()
        self._tokens, self._kept_tokens, self._latest = 0, latest, [[] for _ in self._blocks]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While open, every token that passes through the model's FF blocks is counted."""
        with self._watching(self._count):
            yield

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """As ``collecting``, but no token is counted yet. Call the function with how many of the first tokens count.

        It can be called after the block has ended.
        """
        held_L: list[list[tuple[Tensor, Seen]]] = [[] for _ in self._blocks]

        @torch.inference_mode()
        def count(tokens: int) -> None:
            for layer, held in enumerate(held_L):
                z_TF = torch.cat([z_TF for z_TF, _ in held])[:tokens]
                parts = zip(*(parts for _, parts in held), strict=True)
                self._count(layer, z_TF, [torch.cat(part)[:tokens] for part in parts])

        with self._watching(lambda layer, z_TF, parts: held_L[layer].append((z_TF, parts))):
            yield count

    @contextmanager
    def _watching(self, seen: Callable[[int, Tensor, Seen], None]) -> Iterator[None]:
        hooks = [
            block.contract.register_forward_pre_hook(self._hook(layer, seen))
            for layer, block in enumerate(self._blocks)
        ]
        if self._kept_tokens and self._blocks[0].activation is not None:
            hooks += [
                projection.register_forward_hook(self._remember)
                for block in self._blocks
                for projection in block.expand
            ]
        self._expanded = []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def sums(self, *, latest: bool = True) -> Sums:
        """A copy of everything that was counted, with the latest tokens' activations if ``latest``."""
        return Sums(self._values_3LF.clone(), self._weight_L.clone(), self._tokens, self._tail() if latest else ())

    @torch.inference_mode()
    def resume(self, sums: Sums) -> None:
        """Go on from such a copy."""
        self._values_3LF.copy_(sums.values_3LF)
        self._weight_L.copy_(sums.weight_L)
        self._tokens, self._latest = sums.tokens, [[] for _ in self._blocks]
        for pieces, known in zip(self._latest, sums.latest, strict=False):
            pieces.append(known)

    def value(self) -> Tensor:
        """s of equation 1: fp32 ``(L, F)``."""
        return self._values_3LF[0].sqrt()

    def moments(self) -> Moments:
        """The moments of all tokens counted so far, without the first."""
        _, sum_LF, square_LF = self._values_3LF
        return Moments(sum_LF, square_LF, self._weight_L, max(0, self._tokens - 1))

    @property
    def latest_tokens(self) -> int:
        """How many tokens ``latest`` has."""
        return min(self._kept_tokens, sum(map(len, self._latest[-1])))

    def latest(self) -> Sequence[Activations]:
        """For each layer the activations of the latest tokens that are kept, without the sequence's first token.

        Empty if there are no such tokens.
        """
        activation = self._blocks[0].activation
        if activation is None:
            return tuple(map(Activations, self._tail()))
        gates_ups = (known.chunk(2, dim=1) for known in self._tail())
        return tuple(Activations(activation(gate_TF), up_TF) for gate_TF, up_TF in gates_ups)

    def _tail(self) -> Sequence[Tensor]:
        """See ``Sums.latest``."""
        if not self.latest_tokens:
            return ()
        # A single piece, the usual case, is not copied.
        whole = (pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in self._latest)
        return tuple(known[-self._kept_tokens :] for known in whole)

    def _count(self, layer: int, z_TF: Tensor, parts: Seen) -> None:
        *rows, weight = sums_of(z_TF, skipped=0 if self._tokens else 1)
        # The layers of a model may be on several devices.
        for values_F, row_F in zip(self._values_3LF[:, layer], rows, strict=True):
            values_F.add_(row_F.to(values_F.device))
        self._weight_L[layer] += weight.to(self._weight_L.device)
        first = 0 if self._tokens else 1
        if self._kept_tokens and len(z_TF) > first:
            first = max(first, len(z_TF) - self._kept_tokens)
            self._hold(layer, [part[first:] for part in parts])
        if layer == len(self._blocks) - 1:
            self._tokens += len(z_TF)

    def _hold(self, layer: int, parts: Seen) -> None:
        pieces = self._latest[layer]
        # A copy, because a view would hold the whole chunk's activations.
        pieces.append(torch.cat(tuple(parts), dim=1))
        if sum(map(len, pieces)) > 2 * self._kept_tokens:
            pieces[:] = [torch.cat(pieces)[-self._kept_tokens :]]

    def _hook(self, layer: int, seen: Callable[[int, Tensor, Seen], None]) -> Any:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Some families flatten to (T, F) before the projection, others keep (1, T, F).
            z_TF = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            parts, self._expanded = self._expanded, []
            seen(layer, z_TF, parts or [z_TF])

        return look

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._expanded.append(output.detach().reshape(-1, output.shape[-1]))


def magnitude(blocks: Sequence[FeedForward]) -> Tensor:
    """The paper's static baseline (5.1): the row norms of W_1, times those of W_g where gated. fp32 ``(L, F)``."""
    rows = [_row_norms(block) for block in blocks]
    return torch.stack([row_F.to(rows[0].device) for row_F in rows])


def _row_norms(block: FeedForward) -> Tensor:
    return torch.stack([part.row_norms() for part in block.parts_FD]).prod(dim=0)
