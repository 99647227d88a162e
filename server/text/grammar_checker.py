"""GrammarChecker: a process that compiles forms of clients first, so that a hurtful one harms nothing else."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("grammar_program.py")
# For each form. The limits stand in docs/api.md.
CPU_S = 0.5
MEMORY = 2**30
# Of the compiler, and of a step of the parser: some milliseconds.
PARSER_LIMITS = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 50_000,
    "max_grammar_size": 200_000, "verbose_errors": False,
}  # fmt: skip


class FormRefused(ValueError):
    """A form that cannot be compiled; the text says why."""


class GrammarChecker:
    """Starts its process with the first form, and again after one that ended it. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def grammar(self, kind: str, value: Any) -> str:
        """The grammar of a form.

        Raises:
            FormRefused: there is none, or it takes too much to find it.
        """
        with self._lock:
            answer = self._asked({"kind": kind, "value": value})
        if "error" in answer:
            raise FormRefused(answer["error"])
        return answer["grammar"]

    def close(self) -> None:
        """End the process. Another form starts it anew."""
        with self._lock:
            self._end()

    def _asked(self, form: dict[str, Any]) -> dict[str, str]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(form) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, str] = json.loads(line)
            return answer
        self._end()
        raise FormRefused(
            f"it takes more than {CPU_S:g} s or {MEMORY // 2**30} GiB to compile; make it smaller: less depth, fewer "
            "and shorter alternatives and repetitions"
        )

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            # A session of its own: the terminal's signals are the server's.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", PROGRAM.read_text()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdin is not None
            limits = {"cpu_s": CPU_S, "memory": MEMORY, "parser": PARSER_LIMITS}
            self._process.stdin.write(json.dumps(limits) + "\n")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
