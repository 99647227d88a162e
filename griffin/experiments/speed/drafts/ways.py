"""Ways to answer a prompt: the engine with a pruning and a verification, or llama.cpp. Each answer is timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from griffin import Engine, Pruning, Sampling, Verification, Verified
from griffin.experiments.common.llama import LlamaCpp
from griffin.experiments.speed.contestants import LLAMA_CPP, PAUSE

Ids = list[int]
# The drafts that requests get: tokens that followed the latest tokens earlier, checked by the model that answers.
NGRAMS = Verification(mode="fast", draft="ngram")
FULL = "full"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt.

    seconds: from the first token to the last. Neurons are chosen in between.
    drafted, accepted: the number of tokens that were proposed, and how many of them stayed.
    """

    ids: Ids
    seconds: float
    drafted: int = 0
    accepted: int = 0

    @property
    def timed(self) -> bool:
        """Whether it has a speed. An answer of one token has none."""
        return len(self.ids) > 1

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return (len(self.ids) - 1) / self.seconds


@dataclass(frozen=True, slots=True)
class Way:
    """``run`` answers a prompt.

    base: the name of the way that it is compared with; its own name if it is not compared.
    """

    name: str
    base: str
    run: Callable[[Ids], Answer]


def with_and_without(engine: Engine, prunings: dict[str, Pruning], sampling: Sampling) -> list[Way]:
    """Each pruning without drafts and with n-gram drafts."""
    found = []
    for name, pruning in prunings.items():
        found.append(engine_way(engine, name, name, pruning, None, sampling))
        found.append(engine_way(engine, f"{name}, drafts", name, pruning, NGRAMS, sampling))
    return found


def lossless(engine: Engine, prunings: dict[str, Pruning], sampling: Sampling) -> list[Way]:
    """Lossless with drafts by each pruning's neurons, and by both n-grams and these neurons."""
    kinds = {"": Verification("lossless", draft="pruned"), " and n-grams": Verification("lossless", draft="both")}
    return [
        engine_way(engine, f"lossless, {name}{what}", FULL, pruning, verification, sampling)
        for name, pruning in prunings.items()
        if name != FULL
        for what, verification in kinds.items()
    ]


def engine_way(
    engine: Engine, name: str, base: str, pruning: Pruning, verification: Verification | None, sampling: Sampling
) -> Way:
    return Way(name, base, partial(_by_engine, engine, pruning, verification, sampling))


def llama_cpp_ways(llama_cpp: LlamaCpp, lookups: Sequence[int], tokens: int, ends: frozenset[int]) -> list[Way]:
    """llama.cpp, greedy, without drafts and with its own prompt lookup.

    Args:
        lookups: drafts at once, one way for each number.
    """
    names = {0: LLAMA_CPP} | {number: f"{LLAMA_CPP}, lookup {number}" for number in lookups}
    return [
        Way(name, LLAMA_CPP, partial(_by_llama_cpp, llama_cpp, lookup, tokens, ends)) for lookup, name in names.items()
    ]


def _by_engine(
    engine: Engine, pruning: Pruning, verification: Verification | None, sampling: Sampling, prompt: Ids
) -> Answer:
    ids: Ids = []
    verified, began = Verified(), 0.0
    for token in engine.generate(prompt, sampling, pruning, verification=verification):
        began = began or time.perf_counter()
        ids.append(token.id)
        verified = token.verified or verified
    return Answer(ids, time.perf_counter() - began, verified.drafted, verified.accepted)


def _by_llama_cpp(llama_cpp: LlamaCpp, lookup: int, tokens: int, ends: frozenset[int], prompt: Ids) -> Answer:
    time.sleep(PAUSE)
    found = llama_cpp.timed(prompt, tokens, lookup, ends)
    time.sleep(PAUSE)
    times = found["times"]
    return Answer(found["ids"], times[-1] - times[0], found["drafted"], found["accepted"])
