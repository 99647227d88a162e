"""Closeness: how near a reader's predictions on a passage are to the full model's, and how many bytes they read.

Shapes: C tokens of a chunk, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from griffin.experiments.common.teacher import Teacher
from griffin.experiments.common.variants import name_of
from griffin.experiments.quality.readers import Reader
from griffin.experiments.quality.tally import Tally, logprobs

# Log-probabilities of this many tokens are held at once.
CHUNK = 32


class Passage:
    """A prompt and the text after it. The first token of that text is read but not predicted."""

    def __init__(self, teacher: Teacher, prompt: Sequence[int], rest: Sequence[int]) -> None:
        self.prompt, self.inputs, self.targets, self._teacher = prompt, rest[:-1], rest[1:], teacher
        self.name = [name_of(prompt), name_of(rest)]

    @cached_property
    def full(self) -> Tensor:
        """The full model's logits after each of ``inputs``, ``(T, V)``."""
        self._teacher.begin_with(self.prompt)
        return torch.cat(list(self._teacher.follow(self.inputs, None, wanted=len(self.inputs))))


def closeness(passage: Passage, reader: Reader) -> dict[str, float]:
    """A reader's ``loss`` and ``kl`` on a passage (nats a token), ``same``, and the ``bytes`` that a token has read."""
    full_TV = passage.full
    tally, done = Tally(), 0
    tally.begin()
    for logits_TV in reader.read(passage.prompt, passage.inputs):
        for found_CV in torch.split(logits_TV, CHUNK):
            place = slice(done, done + len(found_CV))
            tally.add(logprobs(full_TV[place]), logprobs(found_CV).to(full_TV.device), passage.targets[place])
            done += len(found_CV)
    row = tally.row(reader.name)
    return {
        "loss": row["windows"]["loss"][0],
        "kl": row["kl"],
        "same": row["same"],
        "bytes": reader.bytes_per_token(),
        "active": reader.active_parameters(),
    }


def row_of(reader: Reader, answers: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over all windows, which have the same number of tokens. ``windows`` has each window's loss and KL."""
    means = {key: sum(answer[key] for answer in answers) / len(answers) for key in answers[0]}
    windows = {key: [answer[key] for answer in answers] for key in ("loss", "kl")}
    return {"name": reader.name, "sparsity": reader.sparsity, "kind": reader.kind, **means, "windows": windows}
