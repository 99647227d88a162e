"""A decode step as one CUDA graph, from a token's id to the next token's id. Passes of several tokens are graphs too.

The host launches a step before it knows the token that the previous step has drawn. It reads that token in the
meantime, from a copy in pinned memory. After a pass the host draws, because the draws decide which tokens stay.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from griffin.constraint import Constraint
from griffin.decode.cuda.passes import GraphPasses, Replay
from griffin.decode.cuda.step import PASSES, FusedStep, buckets
from griffin.decode.decoder import PassingStep
from griffin.decode.sampler import EVERYTHING, GREEDY, PLAIN, Drawn, Kind, Sampler
from griffin.model.cache import KVCache
from griffin.model.host import Mark
from griffin.model.weights import Weights
from griffin.neurons import Chosen
from griffin.request import Sampling
from griffin.thresholds import Shares

logger = logging.getLogger("griffin")

# Kinds of sampling with their own graph, cheapest first. The last one can serve all requests.
CAPTURED = (GREEDY, PLAIN, EVERYTHING)
# Launches before a capture. The first launches compile, load and allocate, which a capture cannot contain.
WARM_UPS = 2


class CudaCapture:
    """Turns operations into a CUDA graph that can be launched again and again. All its graphs share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Replay) -> Replay:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads of other workers may use the device at the same time.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            body()
        return graph.replay


class GraphDecoder:
    """Launches captured steps. A graph is for one length bucket and one kind of sampling, and serves all methods.

    So each bucket has three graphs of steps, and four graphs of passes, one for each size.

    While a grammar may refuse a token, the device does not work ahead: the host draws each token, after a pass over
    one token.

    For method griffin+ it makes the gates by input at creation. These need extra memory: a third of the feed-forward
    weights, or half of them in blocks without a gate. All engines of a model share them.
    """

    name = "graph"
    own_pass = False

    def __init__(
        self,
        weights: Weights,
        cache: KVCache,
        context_length: int,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        """
        Args:
            cache: moved into the step's buffers.
            capture: makes a function that can be launched again; by default CudaCapture. Tests with Triton's
                interpreter pass another one.
        """
        device = weights.device
        self._cache, self._capture = cache, capture or CudaCapture()
        self._step = FusedStep(weights, context_length)
        cache.adopt(self._step.keys, self._step.values)
        self._sampler = Sampler(len(self._step.logits_V), device)
        self._buckets = buckets(context_length)
        self._graphs: dict[tuple[int, Kind], Replay] = {}
        self._recorded: dict[tuple[int, int], Replay] = {}
        self._passes = GraphPasses(self._step, cache, self._buckets, self._recorded)
        self.passes: PassingStep | None = self._passes
        self._kind = EVERYTHING
        self._slots = [_Slot(self._sampler, device) for _ in range(2)]
        self._turn = 0
        self._capture_all()

    @property
    def ahead(self) -> bool:
        return self.constraint is None

    @property
    def constraint(self) -> Constraint | None:
        return self._sampler.constraint

    def keep(self, chosen: Chosen | None) -> None:
        self._step.keep(chosen)

    def shares(self) -> Shares | None:
        return self._step.shares()

    @torch.inference_mode()
    def begin(
        self, logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Iterable[int]
    ) -> Callable[[], Drawn]:
        self._sampler.load(sampling, prompt_ids, end_ids)
        self._kind = next(kind for kind in CAPTURED if kind.covers(self._sampler.kind))
        return self.draw(logits_V)

    @torch.inference_mode()
    def advance(self) -> Callable[[], Drawn]:
        if self.constraint is not None:
            logits_V = self._passes(int(self._sampler.id))
            self._sampler.prepare()
            return self.draw(logits_V)
        self._cache.length += 1
        bucket = next(bucket for bucket in self._buckets if bucket >= self._cache.length)
        self._graphs[bucket, self._kind]()
        return self._fetch()

    def logits(self) -> Tensor:
        return self._step.logits_V

    def mark(self) -> None:
        self._sampler.mark()

    def back(self) -> None:
        self._sampler.back()

    @torch.inference_mode()
    def draw(self, logits_V: Tensor) -> Callable[[], Drawn]:
        self._sampler.draw(logits_V, self._kind)
        self._follow()
        return self._fetch()

    @torch.inference_mode()
    def take(self, id: int, logits_V: Tensor) -> Callable[[], Drawn]:
        self._sampler.take(id, logits_V)
        self._follow()
        # The host already knows the token, so it waits only for these.
        waits = self._sampler.kind.logprobs or self.constraint is not None
        return self._fetch() if waits else lambda: Drawn(id)

    def _follow(self) -> None:
        """The next step runs the sampler's token, after the tokens in the cache."""
        self._step.position.fill_(self._cache.length)
        self._step.token_id.copy_(self._sampler.id)

    def _capture_all(self) -> None:
        """Capture before any sequence, so that nothing is compiled or allocated in a request."""
        started, total = time.perf_counter(), len(self._buckets) * (len(CAPTURED) + len(PASSES))
        for bucket in reversed(self._buckets):
            for kind in CAPTURED:
                self._graphs[bucket, kind] = self._captured(bucket, kind)
            for tokens in reversed(PASSES):
                self._recorded[bucket, tokens] = self._captured_pass(bucket, tokens)
            done = len(self._graphs) + len(self._recorded)
            logger.info("decode graphs: %d of %d captured", done, total)
        logger.info("decode graphs: ready after %.1f s", time.perf_counter() - started)

    @torch.inference_mode()
    def _captured(self, bucket: int, kind: Kind) -> Replay:
        def body() -> None:
            self._step.run(bucket)
            self._sampler.draw(self._step.logits_V, kind)
            self._step.token_id.copy_(self._sampler.id)

        # Launches before the capture really run. They write to the cache's first places; there is no sequence yet.
        self._step.position.zero_()
        return self._capture(body)

    @torch.inference_mode()
    def _captured_pass(self, bucket: int, tokens: int) -> Replay:
        self._step.position.zero_()
        return self._capture(lambda: self._step.run(bucket, tokens))

    def _fetch(self) -> Callable[[], Drawn]:
        self._turn = 1 - self._turn
        return self._slots[self._turn].fetch(self._sampler)


class _Slot:
    """A token on its way to the host. Two slots take turns: one is read while the other is filled."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        pinned = device.type == "cuda"
        everything = sampler.results(everything=True)
        self._host = [torch.empty_like(result, device="cpu", pin_memory=pinned) for result in everything]
        self._arrived = Mark(device)

    def fetch(self, sampler: Sampler) -> Callable[[], Drawn]:
        results = sampler.results()
        for host, result in zip(self._host, results, strict=False):
            host.copy_(result, non_blocking=True)
        self._arrived.set()
        reading = self._host[: len(results)]

        def wait() -> Drawn:
            self._arrived.synchronize()
            return sampler.read(reading)

        return wait
