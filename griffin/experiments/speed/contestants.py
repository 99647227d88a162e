"""Contestants: the engine, full and pruned, and the programs beside it. Each runs one sequence and times its tokens.

All get the same prompt, draw greedily and generate the same number of tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from griffin import Engine, Pruning, Sampling
from griffin.experiments.common.llama import LlamaCpp
from griffin.experiments.common.memory import peak_bytes, reset_peak
from griffin.experiments.common.progress import Progress
from griffin.model.accounting import Accounting
from griffin.request import MethodName, StatisticName

PROFILED_TOKENS, PROFILED_ROWS = 32, 30
# The paper's names.
STATISTIC_NAMES: dict[StatisticName, str] = {"flocking": "GRIFFIN", "magnitude": "magnitude"}
LLAMA_CPP = "llama.cpp"
# Seconds to wait before and after another process computes, because threads that ended a product still spin a while.
PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One sequence of at least three tokens. Times are seconds since its start.

    times: when each token came, in order.
    selection: seconds to choose the neurons and make them ready to decode. None: nothing was chosen.
    peak_bytes: the highest memory use. None: unknown.
    """

    times: tuple[float, ...]
    selection: float | None = None
    peak_bytes: int | None = None

    @property
    def prefill(self) -> float:
        return self.times[0]

    @property
    def generation(self) -> float:
        """From the first token to the last, with the selection, as in the paper's Table 3."""
        return self.times[-1] - self.times[0]

    @property
    def end_to_end(self) -> float:
        return self.times[-1]

    @property
    def per_token(self) -> float:
        """Mean from the second token to the last. Neurons are chosen once, between the first two tokens."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


@dataclass(frozen=True, slots=True)
class Contestant:
    """``run`` takes a prompt and a number of tokens, and times them.

    accounting: of the weights that it reads; None if they are the engine's.
    """

    name: str
    sparsity: float
    run: Callable[[list[int], int], Run]
    accounting: Accounting | None = None

    @property
    def label(self) -> str:
        return f"{self.name} {self.sparsity * 100:.3g} %" if self.sparsity else self.name


def engine_contestants(
    engine: Engine,
    sparsities: list[float],
    statistics: list[StatisticName],
    methods: Sequence[MethodName] = ("griffin",),
) -> list[Contestant]:
    """The full model, then one contestant for each method, statistic of the paper's method, and sparsity."""
    ways: list[tuple[str, Pruning]] = []
    if "griffin" in methods:
        ways += [(STATISTIC_NAMES[each], Pruning(statistic=each, method="griffin")) for each in statistics]
    ways += [(method, Pruning(method=method)) for method in methods if method != "griffin"]
    pruned = [
        Contestant(name, sparsity, partial(_run_engine, engine, replace(way, sparsity=sparsity)))
        for name, way in ways
        for sparsity in sparsities
    ]
    return [Contestant("full", 0.0, partial(_run_engine, engine, Pruning())), *pruned]


def generate_contestants(model: PreTrainedModel, *, compiled: bool) -> list[Contestant]:
    """transformers' generate as it is. With ``compiled``, also with a static cache, which it compiles on CUDA.

    Replaces the model's own generation settings, which could stop it early.
    """
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    found = [Contestant("generate", 0.0, partial(_run_generate, model, None))]
    if compiled:
        found.append(Contestant("generate compiled", 0.0, partial(_run_generate, model, "static")))
    return found


def llama_cpp_contestant(llama_cpp: LlamaCpp, accounting: Accounting) -> Contestant:
    """llama.cpp, which reads the file's own bytes.

    Args:
        accounting: of the weights that it reads.
    """
    return Contestant(LLAMA_CPP, 0.0, partial(_run_llama_cpp, llama_cpp), accounting)


def run_rounds(
    contestants: list[Contestant],
    prompt: list[int],
    tokens: int,
    rounds: int,
    progress: Progress,
    deadline: float = float("inf"),
) -> list[list[Run]]:
    """The runs of each contestant. In each round all run in turn, so that other load slows all of them equally.

    One more round runs first and does not count: it chooses kernels, compiles, and warms caches and allocators.
    After the first round that counts, no round starts that would probably end after ``deadline``
    (``time.monotonic``).
    """
    runs: list[list[Run]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        started = time.monotonic()
        for contestant, own in zip(contestants, runs, strict=True):
            progress.begin(f"{len(prompt)}+{tokens}, round {number}, {contestant.label}")
            run = contestant.run(prompt, tokens)
            progress.advance()
            if number:
                own.append(run)
        now = time.monotonic()
        if number and now + (now - started) > deadline:
            break
    return runs


def profiles(contestants: list[Contestant], prompt: list[int]) -> str:
    """The operations and kernels in which each contestant spends most time, in one run of a few tokens."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    parts = []
    for contestant in contestants:
        with profile(activities=activities) as recorded:
            contestant.run(prompt, PROFILED_TOKENS)
        table = recorded.key_averages().table(sort_by=order, row_limit=PROFILED_ROWS, max_name_column_width=60)
        parts.append(f"{contestant.label}: {len(prompt)} + {PROFILED_TOKENS} tokens\n{table}")
    return "\n\n".join(parts) + "\n"


def _run_engine(engine: Engine, pruning: Pruning, prompt: list[int], tokens: int) -> Run:
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    reset_peak(engine.device)
    times, selection = [], None
    started = time.perf_counter()
    for token in engine.generate(prompt, sampling, pruning):
        times.append(time.perf_counter() - started)
        selection = token.selection or selection
    return Run(tuple(times), selection and selection.seconds, peak_bytes(engine.device))


def _run_llama_cpp(llama_cpp: LlamaCpp, prompt: list[int], tokens: int) -> Run:
    time.sleep(PAUSE)
    found = llama_cpp.timed(prompt, tokens)
    time.sleep(PAUSE)
    return Run(tuple(found["times"]), None, found["peak_bytes"])


class _Clock(BaseStreamer):  # type: ignore[misc]  # untyped in transformers
    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _run_generate(model: PreTrainedModel, cache: str | None, prompt: list[int], tokens: int) -> Run:
    clock = _Clock()
    ids = torch.tensor([prompt], device=model.device)
    options = {"cache_implementation": cache} if cache else {}
    reset_peak(model.device)
    started = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, streamer=clock, **options)
    # The first put is the prompt itself.
    return Run(tuple(at - started for at in clock.times[1:]), None, peak_bytes(model.device))
