"""The grammar of answers that must call tools, in the model's own form, with arguments by the tools' schemas."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.text.closing import closed
from server.text.grammar_program import JSON
from server.text.tokenizer import Tokenizer
from server.text.tool_calls import Form

MOST_CALLS = 16
# With one of these keys a schema itself says what else an object may have.
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "if")


def mark_ids(tokenizer: Tokenizer, form: Form) -> dict[str, int]:
    """Marks that are one token, special or not. A grammar must name them by their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {str(token): id for id, token in added.items() if str(token) in form.marks}


def arguments_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema for arguments: an object without keys that it does not describe, unless the schema allows them.

    The same holds for objects inside it, as far as ``closed`` can tell.
    """
    others = {} if any(key in parameters for key in OPEN) else {"additionalProperties": False}
    return {"type": "object", **others, **closed(parameters)}


def calls_grammar(
    form: Form,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    tokens: Mapping[str, int],
    *,
    single: bool,
    instead: Mapping[str, Any] | None = None,
) -> str:
    """The grammar in llguidance's variant of Lark.

    Args:
        tools: names and parameters.
        tokens: see ``mark_ids``.
        single: exactly one call; otherwise up to MOST_CALLS, if the form has room for several.
        instead: the answer may be JSON of this schema instead of calls.
    """
    rules = ["start: calls | instead" if instead is not None else "start: calls", *_rules(form, tools, tokens, single)]
    if instead is not None:
        rules.append(f"instead: {_json(instead)}")
    return "\n".join(rules)


def opening_mark(form: Form, tokens: Mapping[str, int]) -> str | None:
    """The mark that begins every call of the form, if it is a token; None where calls may come without one.

    Args:
        tokens: see ``mark_ids``.
    """
    return next((mark for mark in form.opens if mark in tokens and (form.first + form.call).startswith(mark)), None)


def opened_grammar(
    form: Form,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    tokens: Mapping[str, int],
    mark: str,
    *,
    single: bool,
) -> str:
    """What comes after one opening mark: a call, or as many as may stand between marks. Else as ``calls_grammar``.

    Args:
        mark: see ``opening_mark``.
    """
    if form.first:
        inside = replace(form, first=form.first.removeprefix(mark))
    else:
        inside = replace(form, call=form.call.removeprefix(mark))
    if not form.first or mark in (form.between or ""):
        # Another call has another mark.
        inside = replace(inside, between=None)
    return "\n".join(["start: calls", *_rules(inside, tools, tokens, single)])


def _rules(
    form: Form, tools: Sequence[tuple[str, Mapping[str, Any]]], tokens: Mapping[str, int], single: bool
) -> list[str]:
    several = "" if single or form.between is None else f" ({_text(form.between, tokens)} call){{0,{MOST_CALLS - 1}}}"
    rules = [
        f"calls: {_text(form.first, tokens)} call{several} {_text(form.last, tokens)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    for index, (name, parameters) in enumerate(tools):
        # Split first, because a tool may be called ARGUMENTS.
        before, _, after = (part.replace("NAME", name) for part in form.call.partition("ARGUMENTS"))
        schema = _json(arguments_schema(parameters))
        rules.append(f"call_{index}: {_text(before, tokens)} {schema} {_text(after, tokens)}")
    return rules


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON})


def _text(text: str, tokens: Mapping[str, int]) -> str:
    """A text as a sequence of tokens and strings."""
    marks = [mark for mark in tokens if mark in text]
    if not marks:
        return json.dumps(text, ensure_ascii=False) if text else ""
    pieces = re.split("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")", text)
    written = (f"<[{tokens[piece]}]>" if piece in tokens else json.dumps(piece) for piece in pieces if piece)
    return " ".join(written)
