"""Teacher: GRIFFIN on a given text, as if it had been generated (the paper's simulated generation, 5.1 and 5.3).

The prompt runs through the full FF blocks and counts in the statistic. After it only the kept neurons act. Many tokens
run through the model at once, with the same result as one step for each token.

Neurons are removed by setting their activations to zero. The decode path works differently and shares no code with
this, so each one checks the other.

Shapes: L layers, F feed-forward neurons, k of them kept, C tokens of a chunk, B rows of a batch, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from griffin.method.chooser import Chooser
from griffin.method.methods import METHODS
from griffin.method.plus.calibration import Calibration
from griffin.method.preparation import Preparation
from griffin.method.statistic import FlockingStatistic, Sums
from griffin.model.accounting import Accounting
from griffin.model.cache import KVCache
from griffin.model.families import FeedForward, feed_forwards
from griffin.model.forward import extend, head, logits, share
from griffin.neurons import Kept
from griffin.request import METHOD_NAMES, Pruning


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text, to come back to.

    length: the number of tokens before it.
    sums: the statistic of the tokens that ran through the full blocks.
    """

    length: int
    sums: Sums


@dataclass(slots=True)
class Acted:
    """Counts over tokens and layers: kept neurons, and acting neurons."""

    kept: int = 0
    acting: int | Tensor = 0
    tokens: int = 0

    def add(self, kept: Sequence[int], acts_BTF: Tensor) -> None:
        """Add one layer: how many neurons are kept for each row of the batch, and which act on each token."""
        batch, tokens, _ = acts_BTF.shape
        self.tokens += batch * tokens
        self.kept += tokens * sum(kept)
        # It stays on the device: no wait.
        self.acting = self.acting + acts_BTF.sum()

    def parameters(self, accounting: Accounting) -> float:
        """Active parameters of a token, on average."""
        if not self.tokens:
            return float(accounting.total)
        # Each token was counted once in each layer.
        kept, acting = (int(count) * accounting.layers / self.tokens for count in (self.kept, self.acting))
        return accounting.active(round(kept), round(acting))


class Teacher:
    """Reads one text at a time. It shares the weights of the model it was given."""

    def __init__(self, model: PreTrainedModel, chunk: int = 256, calibration: Calibration | None = None) -> None:
        """
        Args:
            chunk: the number of tokens in one forward pass, which bounds the memory.
            calibration: the model's own, for method griffin+.
        """
        # A second tree over the same weights, for the hooks.
        self._model = share(model.eval())
        self._blocks = feed_forwards(self._model)
        self._cache = KVCache(len(self._blocks))
        self._statistic = FlockingStatistic(self._blocks)
        self._chunk = chunk
        self._chooser, self._preparation = Chooser(self._blocks, model.device, calibration), Preparation(calibration)
        self._began: tuple[list[int], Mark] | None = None
        # Everything since a caller last put a new Acted here.
        self.acted = Acted()
        # How the text will be pruned is not known yet, so any method must find what it needs.
        allowed = [METHODS[name] for name in METHOD_NAMES if self._preparation.allows(name)]
        self._latest = max(row.latest_tokens(Pruning()) for row in allowed)

    @property
    def width(self) -> int:
        """F."""
        return self._blocks[0].width

    @torch.inference_mode()
    def begin(self) -> None:
        """Forget the text."""
        self._began = None
        self._cache.length = 0
        self._statistic.reset(self._latest)

    def begin_with(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens. If the current text starts with the same ones, go back to their end."""
        if self._began is not None and self._began[0] == list(ids):
            self.back_to(self._began[1])
            return
        self.begin()
        for _ in self.read(ids):
            pass
        self._began = list(ids), self.mark()

    def read(self, ids: Sequence[int], wanted: int = 0) -> Iterator[Tensor]:
        """Run more tokens through the full model, and count them in the statistic.

        Yields:
            The logits of the last ``wanted`` tokens, ``(C, V)`` for each chunk that has some. Do not keep them all.
        """
        with self._statistic.collecting():
            yield from self._run(ids, wanted)

    def follow(self, ids: Sequence[int], kept: Kept | None, wanted: int = 0) -> Iterator[Tensor]:
        """As ``read``, but through the kept neurons only (None: all), and the tokens do not count in the statistic."""
        with self._masked(kept):
            yield from self._run(ids, wanted)

    @torch.inference_mode()
    def branch(self, id: int, sets: Sequence[Kept | None]) -> Tensor:
        """Run one more token through each of these sets of neurons, as one batch. The text does not change.

        Returns:
            The logits after the token, ``(len(sets), V)``.
        """
        cache = DynamicCache()
        if length := self._cache.length:
            for number, (keys, values) in enumerate(self._cache.copy(0, length)):
                spread = (len(sets), *keys.shape)
                cache.update(keys.expand(spread), values.expand(spread), number)
        ids_B1 = torch.full((len(sets), 1), id, device=self._model.device)
        with self._masked(*sets):
            output = self._model.base_model(input_ids=ids_B1, past_key_values=cache, use_cache=True)
        return head(self._model, output.last_hidden_state[:, -1])

    def mark(self) -> Mark:
        """The current place in the text."""
        return Mark(self._cache.length, self._statistic.sums())

    def back_to(self, mark: Mark) -> None:
        """Go on from a mark. A return to an earlier mark makes later marks invalid, so return to later marks first."""
        self._cache.length = mark.length
        self._statistic.resume(mark.sums)

    def statistic(self) -> Tensor:
        """s of the tokens read so far (equation 1): fp32 ``(L, F)``."""
        return self._statistic.value()

    def choose(self, pruning: Pruning) -> Kept | None:
        """The neurons that this pruning keeps after the tokens read so far; None if it keeps all.

        Raises:
            InvalidRequest: the model is not prepared for this pruning.
        """
        if not pruning.prunes(self.width):
            return None
        self._preparation.require(pruning)
        return self._chooser.choose(self._statistic, pruning)

    def removed(self, pruning: Pruning) -> float:
        """What the removed neurons are worth by the tokens read so far, see ``Chooser.removed``."""
        self._preparation.require(pruning)
        return self._chooser.removed(self._statistic, pruning, [pruning.sparsity])[0]

    def _run(self, ids: Sequence[int], wanted: int) -> Iterator[Tensor]:
        ids_T = torch.tensor(ids, dtype=torch.long, device=self._model.device)
        first_wanted = len(ids) - wanted
        for first in range(0, len(ids), self._chunk):
            part = ids_T[first : first + self._chunk]
            here = first + len(part) - max(first, first_wanted)
            if here > 0:
                yield logits(self._model, part, self._cache, here)
            else:
                extend(self._model, part, self._cache)

    @contextmanager
    def _masked(self, *sets: Kept | None) -> Iterator[None]:
        """Let each row of a batch go through its own neurons (None: all) while the context lasts."""
        handles = []
        for layer, block in enumerate(self._blocks):
            expanded: list[Tensor] = []
            if any(kept is not None and kept.acting is not None for kept in sets) and block.activation is not None:
                handles.append(block.expand[0].register_forward_hook(_remembering(expanded)))
            if any(kept is not None for kept in sets):
                limits_BF, resting_BF = (
                    torch.stack(values) for values in zip(*(self._limits(kept, layer) for kept in sets), strict=True)
                )
                counts = [self.width if kept is None else kept.counts[layer] for kept in sets]
                masking = _masking(limits_BF, resting_BF, block, expanded, partial(self.acted.add, counts))
                handles.append(block.contract.register_forward_pre_hook(masking))
            if any(kept is not None and kept.offset_LD is not None for kept in sets):
                offsets_BD = torch.stack([self._offset(kept, layer) for kept in sets])
                handles.append(block.contract.register_forward_hook(_adding(offsets_BD)))
            if any(kept is not None and kept.correction is not None for kept in sets):
                handles.append(block.contract.register_forward_hook(_correcting(sets, layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _limits(self, kept: Kept | None, layer: int) -> tuple[Tensor, Tensor]:
        """For each neuron: the size above which its gate lets it act, and the resting value its activation loses."""
        down = self._blocks[layer].down
        limit_F = torch.full((self.width,), -1.0, dtype=down.dtype, device=down.device)
        resting_F = torch.zeros_like(limit_F)
        if kept is None:
            return limit_F, resting_F
        limit_F.fill_(torch.inf)
        kept_k = kept.layers[layer].to(limit_F.device)
        if kept.acting is None:
            return limit_F.index_fill_(0, kept_k, -1), resting_F
        limit_F[kept_k] = kept.acting.thresholds[layer].to(limit_F)
        resting_F[kept_k] = kept.acting.resting[layer].to(limit_F)
        return limit_F, resting_F

    def _offset(self, kept: Kept | None, layer: int) -> Tensor:
        down = self._blocks[layer].down
        if kept is None or kept.offset_LD is None:
            return torch.zeros(down.columns, dtype=down.dtype, device=down.device)
        return kept.offset_LD[layer].to(down.device, down.dtype)


def _masking(
    limits_BF: Tensor, resting_BF: Tensor, block: FeedForward, expanded: list[Tensor], acted: Callable[[Tensor], None]
) -> Any:
    batch, width = limits_BF.shape

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Some families flatten to (B T, F) before the projection.
        z_BTF = inputs[0].reshape(batch, -1, width)
        given_BTF = z_BTF
        if expanded and block.activation is not None:
            gate = expanded.pop()
            given_BTF = block.activation(gate[..., : gate.shape[-1] // block.names.fused]).reshape(z_BTF.shape)
        acts_BTF = given_BTF.abs() > limits_BF[:, None]
        acted(acts_BTF)
        z_BTF = (z_BTF - resting_BF[:, None]) * acts_BTF
        return (z_BTF.reshape(inputs[0].shape), *inputs[1:])

    return hook


def _remembering(expanded: list[Tensor]) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        expanded[:] = [output]

    return hook


def _adding(offsets_BD: Tensor) -> Any:
    batch, width = offsets_BD.shape

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output.reshape(batch, -1, width) + offsets_BD[:, None]).reshape(output.shape)

    return hook


def _correcting(sets: Sequence[Kept | None], layer: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        z_BTF = inputs[0].reshape(len(sets), -1, inputs[0].shape[-1])
        corrected_BTD = output.reshape(len(sets), -1, output.shape[-1]).clone()
        for z_TF, corrected_TD, kept in zip(z_BTF, corrected_BTD, sets, strict=True):
            if kept is not None and kept.correction is not None:
                left_kR, right_RD = (
                    factors[layer].to(output) for factors in (kept.correction.left, kept.correction.right)
                )
                corrected_TD += z_TF[:, kept.layers[layer].to(z_TF.device)] @ left_kR @ right_RD
        return corrected_BTD.reshape(output.shape)

    return hook
