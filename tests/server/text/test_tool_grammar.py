"""The reader of each form finds every call that the form's grammar allows, with tokens drawn at random."""

import asyncio
import copy
import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from transformers import PreTrainedTokenizerBase

from griffin.errors import InvalidRequest
from griffin.model.loading import Checkpoint
from server.text.grammars import Grammars
from server.text.tokenizer import TextStream
from server.text.tool_calls import FORMS, HERMES, NAMED_FORM, Form, ToolCallReader, joined
from server.text.tool_grammar import MOST_CALLS, arguments_schema, calls_grammar, mark_ids, opened_grammar, opening_mark
from tests.server.text.test_tool_calls import read, said

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a b", 'c"d', 7, None]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind"],
}
TOOLS: list[tuple[str, Mapping[str, Any]]] = [("f", PARAMETERS), ("get_weather", {"type": "object", "properties": {}})]
SCHEMAS = dict(TOOLS)
ALL_FORMS = [*FORMS, NAMED_FORM]
MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>"]


@pytest.fixture(scope="module", params=["marks are text", "marks are tokens", "marks are special"])
def tokenizer(request: pytest.FixtureRequest, smollm2: Checkpoint) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = copy.deepcopy(smollm2.tokenizer)
    if request.param != "marks are text":
        found.add_tokens(MARKS, special_tokens=request.param == "marks are special")
    return found


def drawn(tokenizer: Any, grammar: str, form: Form, seed: int) -> str:
    """A text that the grammar allows, drawn token by token from its masks, as a client sees it."""
    grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    try:
        constraint = asyncio.run(grammars.of_lark(grammar, "tools")).begin()
    finally:
        grammars.close()
    draw, stream, text = random.Random(seed), TextStream(tokenizer, [], [], shown=form.marks), ""
    while not constraint.ended:
        bits = int.from_bytes(constraint.mask(), "little")
        allowed = [id for id in range(len(tokenizer)) if bits >> id & 1]
        # Where the answer may end, it does in half of the cases.
        ends = tokenizer.eos_token_id in allowed
        id = tokenizer.eos_token_id if ends and draw.random() < 0.5 else draw.choice(allowed)
        if id == tokenizer.eos_token_id:
            break
        constraint.advance(id)
        text += stream.feed(id)
    return text + stream.flush()


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.call[:12])
def test_the_reader_finds_all_allowed_calls(tokenizer: PreTrainedTokenizerBase, form: Form, single: bool) -> None:
    """The text is only calls of the tools, and each fits its schema."""
    grammar = calls_grammar(form, TOOLS, mark_ids(tokenizer, form), single=single)

    for seed in range(3):
        calls = said_by(drawn(tokenizer, grammar, form, seed), form)
        assert 1 <= len(calls) <= (1 if single or form.between is None else MOST_CALLS)
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), arguments_schema(SCHEMAS[name]))


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.call[:12])
def test_the_reader_finds_calls_after_an_opening_mark(
    tokenizer: PreTrainedTokenizerBase, form: Form, single: bool
) -> None:
    """If a token of its own opens a call, one call or a list of calls follows."""
    ids = mark_ids(tokenizer, form)
    mark = opening_mark(form, ids)
    assert (mark is None) == (not ids or form.name in ("llama", "json"))
    if mark is None:
        return
    grammar = opened_grammar(form, TOOLS, ids, mark, single=single)

    for seed in range(3):
        calls = said_by(mark + drawn(tokenizer, grammar, form, seed), form)
        listed = form.first.endswith("[") and not single
        assert 1 <= len(calls) <= (MOST_CALLS if listed else 1)
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), arguments_schema(SCHEMAS[name]))


@pytest.mark.parametrize("form", [HERMES, NAMED_FORM], ids=lambda form: form.call[:12])
@pytest.mark.parametrize("name", ["ARGUMENTS", "RENAME_NAMES", "NAME_ARGUMENTS"])
def test_a_tool_may_have_any_name(smollm2: Checkpoint, name: str, form: Form) -> None:
    """The grammar's own words for the parts of a call are allowed as names, too."""
    grammar = calls_grammar(form, [(name, {"properties": {}})], {}, single=True)

    text = drawn(smollm2.tokenizer, grammar, form, 0)
    reader = ToolCallReader(form, {name})
    assert said(joined([*reader.feed(text), *reader.end(cut=False)])) == [(name, "{}")]


def said_by(text: str, form: Form) -> list[tuple[str, str]]:
    calls = said(read(list(text), form))
    assert all(isinstance(part, tuple) for part in calls), text
    return [part for part in calls if isinstance(part, tuple)]


def test_json_may_come_instead(smollm2: Checkpoint) -> None:
    """If a call is optional and the answer has a form, either may come."""
    tokenizer, instead = smollm2.tokenizer, {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}
    grammar = calls_grammar(HERMES, TOOLS[1:], {}, single=True, instead={**instead, "additionalProperties": False})

    texts = {drawn(tokenizer, grammar, HERMES, seed) for seed in range(12)}
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    assert texts == {'{"x": 1}', call}


def test_arguments_have_no_other_keys() -> None:
    """Only a schema that says so allows other keys."""
    assert arguments_schema({})["additionalProperties"] is False
    assert arguments_schema(PARAMETERS)["additionalProperties"] is False
    assert arguments_schema({"additionalProperties": True})["additionalProperties"] is True
    assert "additionalProperties" not in arguments_schema({"$ref": "#/$defs/a"})


def test_objects_in_arguments_have_no_other_keys(smollm2: Checkpoint) -> None:
    """No draw gives an inner object another key."""
    home = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    parameters = {"$defs": {"home": home}, "properties": {"home": {"$ref": "#/$defs/home"}}, "required": ["home"]}
    grammar = calls_grammar(HERMES, [("f", parameters)], {}, single=True)

    for seed in range(4):
        [(_, arguments)] = said_by(drawn(smollm2.tokenizer, grammar, HERMES, seed), HERMES)
        assert json.loads(arguments) in ({"home": {"city": "Paris"}}, {"home": {"city": "Rome"}})


def test_a_schema_that_cannot_be_compiled_is_refused(smollm2: Checkpoint) -> None:
    """The error names the tools."""
    grammar = calls_grammar(HERMES, [("f", {"properties": {"a": {"format": "nope"}}})], {}, single=True)

    with pytest.raises(InvalidRequest, match="tools: "):
        drawn(smollm2.tokenizer, grammar, HERMES, 0)
