"""pydantic's errors about a body become one sentence that names the field."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidField, short
from server.protocol.tokenization import FORMS

# Names at the beginning of a pydantic location that are no fields of the client's.
NO_FIELDS = ("body", *FORMS)


def explain(errors: Sequence[Mapping[str, Any]]) -> InvalidField:
    """One sentence about the first of pydantic's errors. Short, whatever was sent."""
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
        return InvalidField(f"{param} is required", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return InvalidField(f"{param} is not a field of {param.partition('.')[0]}", param, "unknown_parameter")
    message = f"{param}: {str(first['msg']).removeprefix('Value error, ')} (got {short(first['input'])})"
    # A list of plain values is one field; which of them is wrong stands in the text.
    listed = isinstance(first["loc"][-1], int) and not param.startswith(("messages", "tools"))
    return InvalidField(message, param.rpartition("[")[0] if listed else param)


def _path(location: Sequence[str | int]) -> str:
    """A pydantic location as OpenAI writes one: messages[0].role."""
    path = ""
    for depth, part in enumerate(location):
        if depth < 2 and part in NO_FIELDS:
            continue
        # A key of the client's own may be long, or not even be text.
        name = str(part)[:64].encode("ascii", "backslashreplace").decode()
        path = _joined(path, f"[{name}]" if isinstance(part, int) else name)
    return path


def _joined(path: str, name: str) -> str:
    """A name of nothing is the path itself."""
    return path + name if not name or name.startswith("[") or not path else f"{path}.{name}"
