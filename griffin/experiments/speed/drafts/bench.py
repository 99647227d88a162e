"""Bench: the objects that the parts of the experiment share: model, flags, llama.cpp, and the ways to compare."""

import argparse
from dataclasses import dataclass

import torch

from griffin import GriffinError, Pruning, Sampling
from griffin.experiments.common.llama import LlamaCpp, file_for_llama_cpp
from griffin.experiments.common.results import percent
from griffin.experiments.common.study import Study
from griffin.experiments.speed.drafts import first_token, questions
from griffin.experiments.speed.drafts.ways import FULL, Ids, Way, llama_cpp_ways, with_and_without
from griffin.request import MethodName

SEED = 1


@dataclass(frozen=True, slots=True)
class Bench:
    """The objects that the parts share. ``peer`` is llama.cpp, if it runs."""

    study: Study
    arguments: argparse.Namespace
    peer: LlamaCpp | None

    def prunings(self, *methods: MethodName) -> dict[str, Pruning]:
        """The full model, and each method at the sparsity that is asked for."""
        sparsity = self.arguments.sparsity
        pruned = {name_of(each, sparsity): Pruning(sparsity, method=each) for each in methods}
        return {FULL: Pruning(), **pruned}

    def compared(self, temperature: float) -> list[Way]:
        """The engine and llama.cpp (if it runs), each with drafts and without."""
        engine, tokens = self.study.engine, self.arguments.tokens
        sampling = Sampling(temperature=temperature, seed=SEED, max_tokens=tokens)
        found = with_and_without(engine, self.prunings("griffin+"), sampling)
        if self.peer is not None:
            found += llama_cpp_ways(self.peer, self.arguments.lookups, tokens, engine.eos_token_ids)
        return found

    def fitting(self, prompts: list[Ids], tokens: int, flag: str) -> list[Ids]:
        """The prompts, if the context has room for each of them and for ``tokens`` more.

        Raises:
            ValueError: the context is too short; names the flag.
        """
        longest, room = max(map(len, prompts)) + tokens, self.study.context_length
        if longest > room:
            raise ValueError(f"{flag}: prompts and answers have up to {longest} tokens, but the context has {room}")
        return prompts


def open_peer(study: Study, arguments: argparse.Namespace) -> LlamaCpp:
    """llama.cpp with room for the longest prompt, its answer, and a last pass of drafts.

    Raises:
        GriffinError: it cannot run, its file is of another model, or data are missing.
    """
    file, count = file_for_llama_cpp(arguments.llama_cpp, arguments.model), arguments.prompts
    prompts = [*questions.edits(study, count), *questions.chats(study, count)]
    room = max(*first_token.LENGTHS, *map(len, prompts)) + arguments.tokens + max(arguments.lookups) + 1
    peer = LlamaCpp(file, room, torch.get_num_threads(), arguments.llama_cpp_python)
    try:
        peer.require_vocabulary(study.engine.vocabulary_size)
    except GriffinError:
        peer.close()
        raise
    return peer


def name_of(method: MethodName, sparsity: float) -> str:
    return f"{method} {percent(sparsity)}"
