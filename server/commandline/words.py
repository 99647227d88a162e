"""What the value of a setting may be, in a user's words: short for --help, whole for errors."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from server.settings import Settings

SHORT = {"integer": "number", "number": "number", "boolean": "true|false", "string": "text"}
WHOLE = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}


def short(name: str) -> str:
    """A setting's values in one word, such as ``number|auto``."""
    return "|".join(word for form in _forms(name) for word in (_names(form) or [_kind(form, SHORT, "folder")]))


def whole(name: str) -> str:
    """A setting's values, such as ``a number from 0 to below 1, such as 0.5, or auto``."""
    forms = _forms(name)
    named = [word for form in forms for word in _names(form)]
    kinds = [_kind(form, WHOLE, "a folder") + _range(form) for form in forms if not _names(form)]
    example = "".join(f", such as {value}" for value in _schemas()[name].get("examples", ()))
    if not kinds:
        return listed(named)
    return " or ".join(kinds) + example + (f", or {listed(named)}" if named else "")


def listed(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@cache
def _schemas() -> Mapping[str, Any]:
    """JSON schemas of the settings. pydantic makes all of them at once, which takes a while."""
    found: Mapping[str, Any] = Settings.model_json_schema()["properties"]
    return found


def _forms(name: str) -> list[Mapping[str, Any]]:
    """JSON schemas of the values; a setting that may be absent has no word for that."""
    schema = _schemas()[name]
    return [form for form in schema.get("anyOf", [schema]) if form["type"] != "null"]


def _names(form: Mapping[str, Any]) -> list[str]:
    """The values of a form that lists them."""
    return form.get("enum") or ([form["const"]] if "const" in form else [])


def _kind(form: Mapping[str, Any], words: Mapping[str, str], folder: str) -> str:
    # All paths among the settings are folders.
    return folder if form.get("format") == "path" else words[form["type"]]


def _range(form: Mapping[str, Any]) -> str:
    lowest, above = form.get("minimum"), form.get("exclusiveMinimum")
    highest, below = form.get("maximum"), form.get("exclusiveMaximum")
    end = "" if highest is None is below else f"below {below:g}" if below is not None else f"{highest:.15g}"
    if above is not None:
        return f" above {above:g}" + (f", up to {end}" if end else "")
    if lowest is None:
        return ""
    return f" from {lowest:g} to {end}" if end else f" of {lowest:g} or more"
