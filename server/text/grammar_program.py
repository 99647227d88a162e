"""The inside of the checker: forms become grammars, each within limits.

``grammar_checker`` starts it by ``python -I -c``; it imports nothing of this project. Standard input is JSON, one value
a line: first the limits, then forms. Standard output has a line for each form: the grammar, or what is wrong with it.
A form that takes too much time or memory ends the process.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

# One way to write JSON, that of Python's ``json.dumps``: all of it that is not a value is forced.
JSON: Any = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False,
    "coerce_one_of": False,
}  # fmt: skip
LONGEST_ERROR = 300


def main() -> None:
    limits = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parser = LLParserLimits(**limits["parser"])
    for line in sys.stdin:
        form = json.loads(line)
        # The signal's default action ends the process, wherever it is.
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_s"])
        answer = check(form["kind"], form["value"], parser)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def check(kind: str, value: Any, limits: LLParserLimits) -> dict[str, str]:
    try:
        grammar = made(kind, value)
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
        if not failed:
            return {"grammar": grammar}
        error = messages[0]
    except Exception as refusal:
        error = str(refusal)
    where = place(value, error) if kind == "json_schema" else ""
    return {"error": (f"at {where}: " if where else "") + " ".join(error.split())[:LONGEST_ERROR]}


def made(kind: str, value: Any) -> str:
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON)
    if kind == "json_schema":
        if any("x-guidance" in schema for _, schema in objects(value)):
            raise ValueError("x-guidance is not supported; leave it out")
        return LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=JSON)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(x, ensure_ascii=False) for x in value))
    return LLMatcher.grammar_from_lark(value if kind == "lark" else any_to_lark(value))


def objects(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All objects in a value, each with its path."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        path, one = pending.pop()
        if isinstance(one, dict):
            yield path, one
            pending += ((f"{path}.{name}" if path else name, inner) for name, inner in one.items())
        elif isinstance(one, list):
            pending += ((f"{path}[{number}]", inner) for number, inner in enumerate(one))


def place(schema: Any, error: str) -> str:
    """The path of the schema that an error is about, if it names a key or a value that only one of them has."""
    quoted = set(error.split('"')[1::2]) if error.startswith("Unimplemented keys") else {error.rpartition(": ")[2]}
    found = [
        path
        for path, one in objects(schema)
        if quoted <= {*one} or any(isinstance(own, str) and own in quoted for own in one.values())
    ]
    return found[0] if len(found) == 1 else ""


if __name__ == "__main__":
    main()
