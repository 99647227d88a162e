"""With tool_choice auto, calls of strict tools are held to their schemas where this is possible."""

import asyncio
import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from griffin import Checkpoint
from griffin.constraint import Grammar
from server.answer.constraining import strict_calls_of
from server.protocol.tool import Function, Offered, Tool
from server.served import ServedModel
from server.text.grammars import NoGrammars
from server.text.reasoning import MARKS, Thoughts
from server.text.strict_calls import AfterThought, OpenedCalls
from server.text.tool_calls import HERMES

TOOL = Tool(type="function", function=Function(name="f", parameters={"type": "object"}, strict=True))


class Compiles:
    """``Grammars`` that compile everything or nothing."""

    def __init__(self, *, able: bool) -> None:
        self._able = able

    async def of_lark(self, _grammar: str, param: str, _schemas: object = ()) -> Grammar:
        if not self._able:
            raise NoGrammars(f"{param}: not with this model", param)
        return cast("Grammar", object())

    async def of_schema(self, _schema: object, param: str) -> Grammar:
        return await self.of_lark("", param)


@pytest.mark.parametrize(
    ("tokens", "thinks", "able", "held"),
    [
        (["<tool_call>"], False, True, OpenedCalls),
        (["<tool_call>", "<think>", "</think>"], True, True, AfterThought),
        ([], False, True, None),
        # The end of a thought could not be seen, so a call inside it would be held.
        (["<tool_call>"], True, True, None),
        (["<tool_call>"], False, False, None),
    ],
)
def test_calls_are_held_where_their_marks_are_tokens(
    smollm2: Checkpoint, tokens: list[str], thinks: bool, able: bool, held: type | None
) -> None:
    """Without such tokens calls are free, as without strict, and no request fails."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.add_tokens(tokens, special_tokens=False)
    model: Any = SimpleNamespace(
        tokenizer=tokenizer,
        tools=SimpleNamespace(form=HERMES),
        engine=SimpleNamespace(vocabulary_size=len(tokenizer)),
        grammars=Compiles(able=able),
        template_with_tools=None,
    )
    thoughts = Thoughts(MARKS[0], begun=False) if thinks else None
    offered = Offered([TOOL], [0], "auto", single=False)
    found = asyncio.run(strict_calls_of(None, offered, None, thoughts, cast("ServedModel", model)))

    assert type(found) is (held or type(None))
