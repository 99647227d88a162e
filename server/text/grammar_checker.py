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


class GrammarChecker:
    """One process for one tokenizer. One thread at a time may use it."""

    def __init__(self, tokenizer: str, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """Start the process. It reads the tokenizer, about a second, while other things can be done.

        Args:
            tokenizer: as the tokenizers package writes it.
        """
        # A session of its own: the terminal's signals are the server's.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM.read_text()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, start_new_session=True,
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
        """
        if not self._ready:
            if "error" in (answer := self._answer()):
                raise TokenizerRefused(answer["error"])
            self._ready = True
        self._send({"kind": kind, "value": value})
        if "error" in (answer := self._answer()):
            raise FormRefused(answer["error"])
        return answer["grammar"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # There will be no answer either.
            pass

    def _answer(self) -> dict[str, str]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self.close()
            raise FormRefused("could not be compiled: the process for that has ended; try again")
        answer: dict[str, str] = json.loads(line)
        return answer
