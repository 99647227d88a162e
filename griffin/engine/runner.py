"""Runner: what an engine runs a sequence with. All of it is made anew when an engine is rebuilt, but the weights.

Shapes: L layers, F feed-forward neurons, k of them kept.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.steps import Decoder, StepName, make_decoder
from griffin.decode.twin import DecodeTwin
from griffin.engine.chosen import Chosen, Timer
from griffin.engine.prefixes import Chunk, PrefixStore
from griffin.errors import Cancelled, UnsupportedModel, is_out_of_memory
from griffin.method.auto import LossTable, Outlook
from griffin.method.chooser import Chooser
from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import FlockingStatistic
from griffin.model.accounting import Accounting
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.forward import extend, head, logits, share, with_own_logits
from griffin.model.host import HostWeights, stream
from griffin.model.layout import store_by_neuron_
from griffin.model.placement import make_current
from griffin.model.weights import read_weights
from griffin.neurons import kept_count
from griffin.request import Pruning, Sampling

logger = logging.getLogger("griffin")

# Of a step against the model's own forward pass, relative to the largest logit: rounding stays far below, and what
# is computed differently far above.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class Runner:
    """The full model, its decode twin and decoder, and the KV cache and statistic of the sequence at hand."""

    def __init__(
        self,
        origin: PreTrainedModel,
        *,
        context_length: int,
        prefill_chunk: int,
        prefixes: PrefixStore,
        calibration: Calibration | None = None,
        losses: Sequence[LossTable] = (),
        step: StepName = "auto",
    ) -> None:
        # A tree of its own: hooks sit on modules, and engines must not see each other's.
        self.model = share(origin)
        self.device = origin.device
        make_current(self.device)
        blocks = feed_forwards(self.model)
        store_by_neuron_(blocks)
        # First of all: what it merges, the twin is to gather from.
        weights = read_weights(self.model)
        self.twin = DecodeTwin(self.model)
        self.accounting = Accounting.of(self.model)
        stream(self.model, blocks)
        self.statistic = FlockingStatistic(blocks)
        self.cache = KVCache(len(blocks), [block.down.device for block in blocks])
        self._chunk, self._prefixes = prefill_chunk, prefixes
        # Of the prompt at hand, one for each whole chunk.
        self._names: list[bytes] = []
        # How many of the sequence's last tokens are to be read here, whatever is known of it: see ``ridge``.
        self._latest = 0
        self._threads = torch.get_num_threads()
        # By the origin's blocks, where no weight ever moves.
        self.chooser = Chooser(feed_forwards(origin), self.device, calibration, losses)
        self._make_decoder = partial(
            make_decoder, model=self.model, weights=weights, twin=self.twin, cache=self.cache,
            context_length=context_length,
        )  # fmt: skip
        self._use(self._make_decoder(step))

    def verify(self, ids: Sequence[int]) -> None:
        """Compare the decoder's step with the model's own forward pass, and use that instead if they differ.

        A configuration may have what our steps do not know: then decoding is slower, not wrong.

        Args:
            ids: a few tokens to go on from.

        Raises:
            UnsupportedModel: the model makes logits of its hidden states in a way that is not known here. No step
                would be right then, nor would the logits of a prompt.
        """
        self.reset()
        hidden_TD, own_TV = with_own_logits(self.model, torch.tensor(ids, device=self.device), self.cache)
        read_V = head(self.model, hidden_TD[-1:])[0]
        if _error(read_V, own_TV[-1]) > TOLERANCES[self.model.dtype]:
            raise UnsupportedModel(
                f"this '{self.model.config.model_type}' model computes its logits in a way that is not known here"
            )
        if self.decoder.name == "twin" or HostWeights.of(self.model) is not None:
            # These decode by the model's own forward pass; with weights on the host, the dense steps do.
            return
        self.decoder.keep(None)
        next_id = self.decoder.begin(read_V, Sampling(temperature=0), ids, ())().id
        self.decoder.advance()()
        found_V = self.decoder.logits().clone()
        self.cache.length = len(ids)
        _, expected_TV = with_own_logits(self.model, torch.tensor([next_id], device=self.device), self.cache)
        error = _error(found_V, expected_TV[-1])
        if error > TOLERANCES[self.model.dtype]:
            logger.warning(
                "the %s step differs from this model's own by %.2g of its largest logit; decoding by the model's own",
                self.decoder.name,
                error,
            )
            self._use(self._make_decoder("twin"))

    def _use(self, decoder: Decoder) -> None:
        self.decoder = decoder
        # Elsewhere a neuron that rests is read all the same, and more would be read than by the paper's method.
        self.chooser.gates = decoder.skips

    def reset(self, pruning: Pruning | None = None) -> None:
        """Forget the sequence, for another one in this thread, on which neurons may be chosen so."""
        make_current(self.device)
        if self.device.type == "cpu":
            # A thread takes over what another had set for the moment when it first asked torch.
            torch.set_num_threads(self._threads)
        self.cache.length = 0
        self._latest = self.chooser.latest_tokens(pruning) if pruning else 0
        self.statistic.reset(self._latest)
        self._names = []

    def prunes(self, pruning: Pruning) -> bool:
        if pruning.reuse is not None:
            return pruning.reuse.acting < self.accounting.neurons
        return kept_count(self.accounting.width, pruning.sparsity) < self.accounting.width

    def resume(self, ids: Sequence[int], limit: int, dense: int) -> int:
        """Begin with what is known of a prompt's first ``limit`` tokens; how many that were.

        Args:
            dense: how many will be read by the full model.
        """
        self._names = self._prefixes.names(ids)
        limit = min(limit, dense - self._latest)
        chunks = self._prefixes.longest(self._names[: max(0, limit) // self._chunk])
        for chunk in chunks:
            self.cache.append(chunk.keys_values)
        if chunks:
            self.statistic.resume(chunks[-1].sums)
        return len(chunks) * self._chunk

    def _remember(self, behind: int) -> None:
        """Keep the chunk that ends there, if it is a whole one and there is room."""
        number, rest = divmod(behind, self._chunk)
        if rest or number > len(self._names) or not self._prefixes.wants(self._names[number - 1]):
            return
        try:
            # Without the latest tokens' activations, which are larger than all else that is known of a token.
            chunk = Chunk(self.cache.copy(behind - self._chunk, behind), self.statistic.sums(latest=False))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # It would have been a convenience; the request goes on, and those to come have the room.
            self._prefixes.clear()
            return
        self._prefixes.add(self._names[:number], chunk)

    def read_dense(
        self, ids: Sequence[int], start: int, end: int, logits_from: int, cancelled: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """Run tokens of a prompt through the full model, in chunks, and count them in the statistic.

        Yields:
            After each chunk, the logits ``(C, V)`` of its tokens from ``logits_from`` on; C may be 0.

        Raises:
            Cancelled: between chunks.
        """
        with self.statistic.collecting():
            for first, behind in self._chunks(start, end, cancelled):
                yield self._run(self.model, ids, first, behind, logits_from)
                self._remember(behind)

    def load(self, chosen: Chosen) -> None:
        """Have these neurons ready for ``read_sparse``."""
        self.twin.load(chosen.kept)
        chosen.timer.stop()

    def read_sparse(
        self, ids: Sequence[int], start: int, end: int, logits_from: int, cancelled: Callable[[], bool]
    ) -> Iterator[Tensor]:
        """As ``read_dense``, through the neurons that were loaded, and uncounted."""
        for first, behind in self._chunks(start, end, cancelled):
            yield self._run(self.twin.model, ids, first, behind, logits_from)

    def hidden(
        self, model: PreTrainedModel, ids: Sequence[int], start: int, end: int, cancelled: Callable[[], bool]
    ) -> Tensor:
        """The last hidden states ``(T, D)`` of tokens that one of the trees reads, in chunks, and uncounted.

        Raises:
            Cancelled: between chunks.
        """
        chunks = self._chunks(start, end, cancelled)
        return torch.cat([extend(model, torch.tensor(ids[a:b], device=self.device), self.cache) for a, b in chunks])

    def _chunks(self, start: int, end: int, cancelled: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        first = start
        while first < end:
            if cancelled():
                raise Cancelled("the prompt was given up")
            # Up to a multiple of the chunk's size, as any prompt with the same beginning is cut.
            behind = min(first - first % self._chunk + self._chunk, end)
            yield first, behind
            first = behind

    def _run(self, model: PreTrainedModel, ids: Sequence[int], first: int, behind: int, logits_from: int) -> Tensor:
        ids_T = torch.tensor(ids[first:behind], device=self.device)
        wanted = behind - max(first, logits_from)
        if wanted > 0:
            return logits(model, ids_T, self.cache, wanted)
        extend(model, ids_T, self.cache)
        return torch.empty(0, 0, device=self.device)

    def outlook(self, pruning: Pruning, prompt_tokens: int) -> Outlook | None:
        """By the statistic so far, what to remove; None if the request says it."""
        return None if pruning.auto is None else self.chooser.outlook(self.statistic, pruning, prompt_tokens)

    def select(self, pruning: Pruning, prompt_tokens: int) -> Chosen | None:
        """Choose neurons by the statistic so far; None if all stay."""
        if not self.prunes(pruning):
            return None
        timer = Timer(self.device)
        if pruning.reuse is not None:
            prompt_tokens = pruning.reuse.prompt_tokens
        return Chosen(self.chooser.choose(self.statistic, pruning), prompt_tokens, timer)

    def keep(self, chosen: Chosen | None) -> None:
        """Decode with these neurons, or with all."""
        self.decoder.keep(chosen.kept if chosen else None)
        if chosen:
            chosen.timer.stop()


def _error(found_V: Tensor, expected_V: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((found_V.float() - expected_V.float()).abs().max() / expected_V.float().abs().max())
