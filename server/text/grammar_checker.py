"""GrammarChecker: a process that compiles forms of clients first, so that a hurtful one harms nothing else."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("grammar_program.py")
# For each form. The limits stand in docs/api.md.
CPU_S = 0.5
MEMORY = 2**30
# Of what a process says when it ends too soon, in characters.
LONGEST_END = 2000
# Of the compiler, and of a step of the parser: some milliseconds, seldom a tenth of a second.
PARSER_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_items_in_row": 2_000,
    "max_lexer_states": 20_000, "max_grammar_size": 200_000, "precompute_large_lexemes": False,
    "verbose_errors": False,
}  # fmt: skip


class FormRefused(ValueError):
    """A form that cannot be compiled; the text says why."""


class TokenizerRefused(ValueError):
    """A tokenizer whose tokens' bytes cannot be told; the text says why."""


class CheckerFailed(RuntimeError):
    """The process could not begin, whatever the form: a fault of the server. The text is the process's own."""


class GrammarChecker:
    """One process for one tokenizer. One thread at a time may use it."""

    def __init__(self, tokenizer: str, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """Start the process. It reads the tokenizer, about a second, while other things can be done.

        Args:
            tokenizer: as the tokenizers package writes it.
        """
        # Packages may be installed where -I does not look.
        program = f"import sys; sys.path[:] = {sys.path!a}\n{PROGRAM.read_text()}"
        # A session of its own: the terminal's signals are the server's.
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
            FormRefused: there is none, or it takes too much to find it.
            TokenizerRefused: there is none with this tokenizer.
            CheckerFailed: the process has ended before it had read the tokenizer.
        """
        if not self._ready:
            self._begin()
        self._send({"kind": kind, "value": value})
        if (answer := self._answer()) is None:
            self.close()
            raise FormRefused("could not be compiled: the process for that has ended; try again")
        if "error" in answer:
            raise FormRefused(answer["error"])
        return answer["grammar"]

    def close(self) -> str:
        """End the process. What it has said of its own end, if it had not begun."""
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
            # There will be no answer either.
            pass

    def _answer(self) -> dict[str, str] | None:
        """None: the process has ended."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            return None
        answer: dict[str, str] = json.loads(line)
        return answer
