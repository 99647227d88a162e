"""pydantic's errors about a body become one sentence that names the field."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidField, short
from server.protocol.tokenization import FORMS

# First names in a pydantic location that are not fields of the body.
NO_FIELDS = ("body", *FORMS)
# The endpoints' fields for the prompt, each in a sentence.
PROMPTS = {
    "messages": "messages belongs to /v1/chat/completions",
    "prompt": "prompt belongs to /v1/completions",
    "input": "input belongs to /v1/responses",
}


def explain(errors: Sequence[Mapping[str, Any]]) -> InvalidField:
    """One sentence about the first of pydantic's errors. It is short, whatever the client sent."""
    first = errors[0]
    param = _path(first["loc"])
    if first["type"] == "refused":
        rule = first["ctx"]
        param = _joined(param, rule["param"])
        separator = " " if rule["why"].startswith(("is ", "differs ")) else ": "
        return InvalidField(f"{param}{separator}{rule['why']}", param, rule["code"])
    if not param:
        return InvalidField(f"the body: {first['msg']}", None)
    if first["type"] == "missing":
        return InvalidField(
            f"{param} is required{_belongs(param, first['input'])}", param, "missing_required_parameter"
        )
    if first["type"] == "extra_forbidden":
        return InvalidField(f"{param} is not a field of {param.partition('.')[0]}", param, "unknown_parameter")
    message = f"{param}: {str(first['msg']).removeprefix('Value error, ')} (got {short(first['input'])})"
    # A list of plain values is one field; the text says which value is wrong.
    listed = isinstance(first["loc"][-1], int) and not param.startswith(("messages", "tools"))
    return InvalidField(message, param.rpartition("[")[0] if listed else param)


def _belongs(missing: str, body: Any) -> str:
    """If the body has another endpoint's field for the prompt, where that field belongs."""
    if missing not in PROMPTS or not isinstance(body, Mapping):
        return ""
    sent = next((name for name in PROMPTS if name in body), None)
    return f"; {PROMPTS[sent]}" if sent else ""


def _path(location: Sequence[str | int]) -> str:
    """A pydantic location as OpenAI writes one: messages[0].role."""
    path = ""
    for depth, part in enumerate(location):
        if depth < 2 and part in NO_FIELDS:
            continue
        # A client's own key may be long, or not be text.
        name = str(part)[:64].encode("ascii", "backslashreplace").decode()
        path = _joined(path, f"[{name}]" if isinstance(part, int) else name)
    return path


def _joined(path: str, name: str) -> str:
    """Join a path and a name; without a name it is the path alone."""
    return path + name if not name or name.startswith("[") or not path else f"{path}.{name}"
