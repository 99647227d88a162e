"""The model that answers: its names, what it reads and writes text with, and the workers that run it."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from server.errors import InvalidField
from server.loader import Loaded
from server.protocol.fields import SparsityChoice
from server.settings import ALIAS
from server.text.grammars import Grammars
from server.text.infill import Infill
from server.text.logprobs import Vocabulary
from server.text.reasoning import Marks, marks_of
from server.text.tokenizer import Tokenizer, special_tokens, template_text
from server.text.tool_prompt import ToolSupport
from server.work.experts import RecentExperts
from server.work.job import EngineLike
from server.work.workers import Workers

T = TypeVar("T")

NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE]-?[0-9]{1,3})?")
LISTED_SPARSITIES = (0.25, 0.5, 0.75)
# In characters or tokens. More takes the tokenizer milliseconds, in which no other request's token could be sent.
LONG_TEXT = 20_000
# For the chunks of prompts that wait to be written.
WRITE_S = 3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers.

    names: all that clients may use; the first stands in metrics.
    workers: run its engines.
    vocabulary: how its tokens are spelled.
    infill: how it is asked for the text between two others; None if it has no marks for that.
    grammars: of its tokens.
    sampling_defaults: apply where a request names no value.
    tools: how it is told of tools, and calls them.
    thoughts: what stands around its thoughts, if it thinks before it answers.
    experts: the neurons that recent requests ran with.
    answers: those that have not been read to their end yet, by id; each keeps the model in memory.
    close_files: writes what is to outlive the process, in the seconds that it is given.
    """

    names: Sequence[str]
    tokenizer: Tokenizer
    workers: Workers
    vocabulary: Vocabulary
    grammars: Grammars
    sampling_defaults: Mapping[str, float]
    infill: Infill | None
    tools: ToolSupport
    thoughts: Marks | None
    experts: RecentExperts = field(default_factory=RecentExperts)
    answers: set[int] = field(default_factory=set)
    close_files: Callable[[float], None] = lambda seconds: None
    _one_at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @classmethod
    def of(cls, loaded: Loaded, workers: Workers) -> "ServedModel":
        names, tokenizer, engine = (loaded.name, *loaded.other_names), loaded.tokenizer, workers.engine
        return cls(
            names=names,
            tokenizer=tokenizer,
            workers=workers,
            vocabulary=Vocabulary(tokenizer),
            grammars=Grammars(tokenizer, engine.vocabulary_size, engine.eos_token_ids),
            sampling_defaults=loaded.sampling_defaults,
            infill=Infill.of(tokenizer),
            tools=ToolSupport.of(tokenizer),
            thoughts=marks_of(template_text(tokenizer), special_tokens(tokenizer).values()),
            close_files=loaded.close,
        )

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def engine(self) -> EngineLike:
        """Any of the workers' engines, for what they all have in common: sizes and limits."""
        return self.workers.engine

    def close(self) -> None:
        """Give up requests that are not finished."""
        self.workers.close()

    def join(self, timeout_s: float) -> None:
        """After the workers were closed, in a thread: wait for all that runs, and have written what is to be kept."""
        self.grammars.close()
        self.workers.join(timeout_s)
        self.close_files(WRITE_S)

    async def worked_out(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """Tokenizing and the like: at once if it is little, in a thread if it would keep all others waiting.

        One at a time there, so that no crowd of long texts takes the processor from the engine.

        Args:
            size: of the text, in characters or tokens.
        """
        if size < LONG_TEXT:
            return work(*arguments)
        async with self._one_at_a_time:
            return await asyncio.to_thread(work, *arguments)


def aliases(name: str) -> list[str]:
    """Those of a model's name that are listed; every sparsity has one."""
    return [f"{name}{ALIAS}{sparsity:g}" for sparsity in LISTED_SPARSITIES]


def parse_sparsity(text: str, where: str) -> SparsityChoice:
    """A sparsity that does not come as JSON.

    Args:
        where: the name of the field that it was found in.

    Raises:
        InvalidField: it is none.
    """
    if text == "auto":
        return "auto"
    sparsity = float(text) if NUMBER.fullmatch(text) else -1.0
    if not 0 <= sparsity < 1:
        raise InvalidField(f"{where}: the sparsity must be a number from 0 to below 1, such as 0.5, or auto", where)
    return sparsity
