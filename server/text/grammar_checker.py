"""GrammarChecker: a process that compiles clients' forms first, so that a harmful form can hurt nothing else."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("grammar_program.py")
# Limits for each form; docs/api.md states them.
CPU_S = 0.5
MEMORY = 2**30
# Characters of what a process prints when it ends too soon.
LONGEST_END = 2000
# Limits of the compiler and of one parser step. A step takes milliseconds, rarely a tenth of a second.
PARSER_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_items_in_row": 2_000,
    "max_lexer_states": 20_000, "max_grammar_size": 200_000, "precompute_large_lexemes": False,
    "verbose_errors": False,
}  # fmt: skip


class FormRefused(ValueError):
    """A form that cannot be compiled; the text says why."""


class TokenizerRefused(ValueError):
    """A tokenizer whose tokens cannot be turned into bytes; the text says why."""


class CheckerFailed(RuntimeError):
    """The process could not start, whatever the form: a fault of the server. The text is the process's output."""


class GrammarChecker:
    """One process for one tokenizer. One thread at a time may use it."""

    def __init__(self, tokenizer: str, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """Start the process. It reads the tokenizer in the background, in about a second.

        Args:
            tokenizer: in the JSON form of the tokenizers package.
        """
        # Packages may be installed where Python's -I does not look.
        program = f"import sys; sys.path[:] = {sys.path!a}\n{PROGRAM.read_text()}"
        # A session of its own, so that the terminal's signals reach the server only.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._ready = False
        self._send({
            "tokenizer": tokenizer, "vocabulary_size": vocabulary_size, "end_ids": sorted(end_ids), "cpu_s": CPU_S,
            "memory": MEMORY, "parser": PARSER_LIMITS,
        })  # fmt: skip

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def grammar(self, kind: str, value: Any) -> str:
        """The grammar of a form.

        Raises:
            FormRefused: the form cannot be compiled, or compiling costs too much.
            TokenizerRefused: this tokenizer allows no grammar.
            CheckerFailed: the process ended before it had read the tokenizer.
        """
        if not self._ready:
            self._begin()
        self._send({"kind": kind, "value": value})
        if (answer := self._answer()) is None:
            self.close()
            raise FormRefused("could not be compiled: the compiler's process has ended; try again")
        if "error" in answer:
            raise FormRefused(answer["error"])
        return answer["grammar"]

    def close(self) -> str:
        """End the process. Returns its own last output if it ended before it had begun."""
        self._process.kill()
        return self._process.communicate()[1]

    def _begin(self) -> None:
        if (answer := self._answer()) is None:
            said = self.close().strip() or "nothing"
            raise CheckerFailed(
                f"the process that compiles forms has ended with code {self._process.returncode} before it began; "
                f"it said: {said[-LONGEST_END:]}"
            )
        if "error" in answer:
            raise TokenizerRefused(answer["error"])
        self._ready = True

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # No answer will come either.
            pass

    def _answer(self) -> dict[str, str] | None:
        """The next answer; None: the process has ended."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            return None
        answer: dict[str, str] = json.loads(line)
        return answer
