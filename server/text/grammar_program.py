"""The checker's process: it compiles forms to grammars, each in a fork with limits.

``grammar_checker`` starts it with ``python -I -c`` and the server's own paths; it imports nothing of this project.
Standard input has one JSON value a line: first the tokenizer and the limits, then forms. Standard output has one line
for each: ``{}`` once the tokenizer is read, then the grammar of each form, or an error. Nobody reads standard error
after the first line.

A form is compiled as the server will do it, up to the mask of the first token. A fork does it, so that a harmful form
hurts only the fork, and the tokenizer is read once.
"""

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

# JSON is written in one way, that of Python's ``json.dumps``, so all text around the values is forced.
JSON: Any = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False,
    "coerce_one_of": False,
}  # fmt: skip
LONGEST_ERROR = 300


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    try:
        tokenizer = LLTokenizer(
            setup["tokenizer"], n_vocab=setup["vocabulary_size"], eos_token=setup["end_ids"] or None
        )
    except Exception as refusal:
        print(json.dumps({"error": short(str(refusal))}), flush=True)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    print("{}", flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A fork would copy the pages that the collector writes to.
    gc.freeze()
    for line in sys.stdin:
        if not (child := os.fork()):
            limit(setup["cpu_s"], setup["memory"])
            answer = json.dumps(checked(json.loads(line), tokenizer, LLParserLimits(**setup["parser"])))
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            print(json.dumps({"error": ended(code, setup["cpu_s"], setup["memory"])}), flush=True)


def limit(cpu_s: float, memory: int) -> None:
    """Limit what this process may use from here on. The signals' default actions end it, wherever it is."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def ended(code: int, cpu_s: float, memory: int) -> str:
    """The error for a fork that ended with this code."""
    what = f"{cpu_s:g} s of the processor" if code == -signal.SIGPROF else f"{memory // 2**20} MiB of memory"
    return f"takes more than {what} to compile; use less depth, and fewer and shorter alternatives and repetitions"


def checked(form: dict[str, Any], tokenizer: LLTokenizer, limits: LLParserLimits) -> dict[str, str]:
    kind, value = form["kind"], form["value"]
    try:
        grammar = made(kind, value)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if not matcher.is_error() and not (matcher.is_stopped() and not matcher.is_accepting()):
            return {"grammar": grammar}
        error = matcher.get_error() if not matcher.is_stopped() or "NoExt" not in matcher.get_error() else ""
    except MemoryError:
        os.abort()
    except Exception as refusal:
        error = str(refusal)
    where = place(value, error) if kind == "json_schema" else ""
    return {"error": (f"at {where}: " if where else "") + short(error or "no text has this form")}


def short(error: str) -> str:
    return " ".join(error.replace("<non-verbose/>", "").split())[:LONGEST_ERROR]


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
        # In one lexeme: parser alternatives would take much longer.
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
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
    """The path of the schema that an error is about, if the error names a key or value that only one schema has."""
    quoted = set(error.split('"')[1::2]) if error.startswith("Unimplemented keys") else {error.rpartition(": ")[2]}
    found = [
        path
        for path, one in objects(schema)
        if quoted <= {*one} or any(isinstance(own, str) and own in quoted for own in one.values())
    ]
    return found[0][:LONGEST_ERROR] if len(found) == 1 else ""


if __name__ == "__main__":
    main()
