"""LlamaCpp: llama.cpp on a GGUF file, in its own process, to be measured beside the engine.

The package llama-cpp-python need not be installed here: another Python may have it (``--llama-cpp-python``).

Shapes: T tokens, V vocabulary.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from griffin.errors import GriffinError
from griffin.model.checkpoint.source import locate

Facts = dict[str, Any]

# Run by its path, because it imports a package that may be missing here.
PROGRAM = Path(__file__).with_name("llama_program.py")


def add_llama_cpp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llama-cpp", type=Path, nargs="?", const=True, metavar="FILE",
        help="also measure llama.cpp, on the model's own .gguf file or on this one (needs llama-cpp-python)",
    )  # fmt: skip
    parser.add_argument(
        "--llama-cpp-python", type=Path, metavar="PYTHON",
        help="a Python that has llama-cpp-python, such as venv/bin/python (this one)",
    )  # fmt: skip


def file_for_llama_cpp(asked: Path | bool, model: str | None) -> Path:
    """The file that ``--llama-cpp`` means.

    Args:
        asked: the flag's value; True if it has none.
        model: as ``--model`` names it; None for random weights.

    Raises:
        GriffinError: the model has no GGUF file of its own.
        LoadError: there is no such model.
    """
    if isinstance(asked, Path):
        return asked
    source = locate(model) if model is not None else None
    if source is None or not source.is_gguf:
        what = f"'{model}' is no .gguf file" if model is not None else "--shape has no file"
        raise GriffinError(f"--llama-cpp: {what}; name one: --llama-cpp FILE")
    assert source.path is not None
    return source.path


class LlamaCpp:
    """A running llama.cpp with one file and one sequence. It is a context manager, which ends the process.

    file: the file that it has loaded.
    facts: what the process says about itself, see ``llama_program.Model.facts``.
    """

    def __init__(self, file: Path, context_length: int, threads: int, python: Path | None = None) -> None:
        """
        Args:
            python: a Python that has the package; None is this Python.

        Raises:
            GriffinError: the package is not there, or llama.cpp cannot load the file.
        """
        self.file = file
        python = python or Path(sys.executable)
        # Read only if the process ends by itself.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        program = [str(python), str(PROGRAM)]
        try:
            self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        except OSError as error:
            self._said.close()
            raise GriffinError(f"--llama-cpp-python: cannot run '{python}': {error.strerror}") from error
        try:
            self.facts = self._ask({"file": str(file), "context_length": context_length, "threads": threads})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require_vocabulary(self, size: int) -> None:
        """
        Raises:
            GriffinError: the file's vocabulary has another size than the model's.
        """
        if (own := self.facts["vocabulary"]) != size:
            raise GriffinError(f"--llama-cpp: '{self.file}' has {own} tokens, but the model has {size}: another model")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._said.close()

    def timed(self, prompt: Sequence[int], tokens: int, lookup: int = 0, ends: Collection[int] = ()) -> Facts:
        """Read a prompt and continue it, see ``llama_program.Model.timed``."""
        asked = {"prompt": list(prompt), "tokens": tokens, "lookup": lookup, "ends": sorted(ends)}
        return self._ask({"kind": "timed", **asked})

    def clear(self) -> None:
        """Forget the sequence."""
        self._ask({"kind": "clear"})

    def logits(self, ids: Sequence[int], *, one_by_one: bool) -> Tensor:
        """Extend the sequence: the logits after each token, fp32 ``(T, V)``; see ``llama_program.Model.logits``."""
        found = self._ask({"kind": "logits", "ids": list(ids), "one_by_one": one_by_one})
        assert self._process.stdout is not None
        content = bytearray(self._process.stdout.read(found["bytes"]))
        return torch.frombuffer(content, dtype=torch.float32).view(found["shape"])

    def _ask(self, request: Facts) -> Facts:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise GriffinError(f"--llama-cpp: {self._last_words()}")
        found: Facts = json.loads(line)
        if "error" in found:
            raise GriffinError(f"--llama-cpp: '{self.file}': {found['error']}")
        return found

    def _last_words(self) -> str:
        """The reason why the process has ended, in words."""
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        if "No module named 'llama_cpp'" in said:
            return (
                "the package is not installed: pip install llama-cpp-python, or name a Python that has it: "
                "--llama-cpp-python PYTHON"
            )
        return f"its process ended with code {code}: {said.splitlines()[-1] if said else 'without a word'}"


def described(facts: Facts) -> str:
    """The facts that a reader needs to compare the process's figures with others, as a line."""
    flags = [flag.strip() for flag in facts["system_info"].replace("CPU :", "").split("|")]
    buffers = ", ".join(f"{name} {size}" for name, size in facts["buffers"].items() if name.endswith("model"))
    words = [
        f"llama.cpp: llama-cpp-python {facts['package']}",
        f"ggml {facts['ggml']} ({facts['ggml_commit']})",
        f"{facts['threads']} threads",
        f"n_batch {facts['n_batch']}",
        f"n_ubatch {facts['n_ubatch']}",
        f"KV cache {facts['type_k']} and {facts['type_v']}",
        f"flash attention {facts['flash_attention']}",
        f"mmap {'on' if facts['mmap'] else 'off'}",
        f"weights: {buffers or 'unknown'}",
        f"built with {' '.join(flag.removesuffix(' = 1') for flag in flags if flag.endswith(' = 1'))}",
    ]
    return ", ".join(words)
