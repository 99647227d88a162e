"""The model that answers: its names, its tokenizer and grammars, and the workers that run it."""

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
from server.text.response_template import ResponseTemplate
from server.text.tokenizer import Tokenizer, special_tokens, template_text
from server.text.tool_prompt import ToolSupport
from server.work.experts import RecentExperts
from server.work.job import EngineLike
from server.work.workers import Workers

T = TypeVar("T")

NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE]-?[0-9]{1,3})?")
LISTED_SPARSITIES = (0.25, 0.5, 0.75)
# Characters or tokens. Longer texts take the tokenizer milliseconds, during which no other token could be sent.
LONG_TEXT = 20_000
# Seconds for prompt chunks that wait to be written.
WRITE_S = 3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers.

    names: all names that clients may use; metrics use the first.
    workers: run its engines.
    vocabulary: how its tokens are spelled.
    infill: how to ask it for the text between two others; None if its tokenizer has no marks for that.
    grammars: compile forms for its tokens.
    sampling_defaults: values for requests that name none.
    tools: how tools are described to it, and how it writes calls.
    thoughts: the marks around its thoughts; None if it does not think.
    template: its tokenizer's own description of answers; None if the tokenizer has none.
    experts: the neurons of recent requests.
    answers: ids of answers that have not been read to their end; each keeps the model in memory.
    close_files: writes what must survive the process, within the given seconds.
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
    template: ResponseTemplate | None
    experts: RecentExperts = field(default_factory=RecentExperts)
    answers: set[int] = field(default_factory=set)
    close_files: Callable[[float], None] = lambda seconds: None
    _one_at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @classmethod
    def of(cls, loaded: Loaded, workers: Workers) -> "ServedModel":
        names, tokenizer, engine = (loaded.name, *loaded.other_names), loaded.tokenizer, workers.engine
        template = ResponseTemplate.of(tokenizer)
        marks = marks_of(template_text(tokenizer), special_tokens(tokenizer).values())
        return cls(
            names=names,
            tokenizer=tokenizer,
            workers=workers,
            vocabulary=Vocabulary(tokenizer),
            grammars=Grammars(tokenizer, engine.vocabulary_size, engine.eos_token_ids),
            sampling_defaults=loaded.sampling_defaults,
            infill=Infill.of(tokenizer),
            tools=ToolSupport.of(tokenizer),
            thoughts=marks or (template.marks if template else None),
            template=template,
            close_files=loaded.close,
        )

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def engine(self) -> EngineLike:
        """Any of the workers' engines, to read what all of them share: sizes and limits."""
        return self.workers.engine

    @property
    def template_with_tools(self) -> ResponseTemplate | None:
        """The template, if it also reads answers to requests with tools.

        It does not if it knows no calls, or if the server describes the tools in a text, which asks for another form.
        """
        return self.template if self.template and self.template.has_calls and self.tools.takes_tools else None

    def close(self) -> None:
        """Cancel requests that are not finished."""
        self.workers.close()

    def join(self, timeout_s: float) -> None:
        """Call in a thread after ``close``: wait for what still runs, and write what is to be kept."""
        self.grammars.close()
        self.workers.join(timeout_s)
        self.close_files(WRITE_S)

    async def worked_out(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """Run work such as tokenizing: small work at once, large work in a thread so that other requests do not wait.

        The thread does one piece at a time, so that many long texts cannot take the processor from the engine.

        Args:
            size: characters or tokens of the text.
        """
        if size < LONG_TEXT:
            return work(*arguments)
        async with self._one_at_a_time:
            return await asyncio.to_thread(work, *arguments)


def aliases(name: str) -> list[str]:
    """The aliases of a model's name that are listed; every sparsity has an alias."""
    return [f"{name}{ALIAS}{sparsity:g}" for sparsity in LISTED_SPARSITIES]


def parse_sparsity(text: str, where: str) -> SparsityChoice:
    """A sparsity that arrives as text, not as JSON.

    Args:
        where: the name of the field that contains it.

    Raises:
        InvalidField: it is not a sparsity.
    """
    if text == "auto":
        return "auto"
    sparsity = float(text) if NUMBER.fullmatch(text) else -1.0
    if not 0 <= sparsity < 1:
        raise InvalidField(f"{where}: the sparsity must be a number from 0 to below 1, such as 0.5, or auto", where)
    return sparsity
