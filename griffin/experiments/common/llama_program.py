"""llama.cpp behind a pipe: a program that any Python with the package llama-cpp-python can run.

It imports nothing of this project. Each request is one line of JSON on standard input, and each answer is one on
standard output. Bytes may follow an answer; the answer gives their number. llama.cpp's own output goes to standard
error.

All settings except the lengths and the threads are llama.cpp's own defaults.

Shapes: T tokens, V vocabulary.
"""

import ctypes
import json
import os
import re
import sys
import time
from typing import Any, BinaryIO

# Python puts this file's folder first in the path. llama_cpp must not import modules from there.
if __name__ == "__main__":
    sys.path.pop(0)

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

# llama.cpp's log lines on where weights, keys and values are, and on whether it uses flash attention.
BUFFER = re.compile(r"(\w+)\s+(\w+) buffer size =\s+([\d.]+ MiB)")
FLASH_ATTENTION = re.compile(r"Flash Attention.*\b(enabled|disabled)\b")
# Levels of its log.
ERROR, CONTINUED = 4, 5


class Log:
    """llama.cpp's log. Only errors are passed on, to standard error."""

    def __init__(self) -> None:
        self.text = ""
        self._callback = llama_cpp.llama_log_callback(self._add)
        llama_cpp.llama_log_set(self._callback, None)

    def _add(self, level: int, text: bytes, _: object) -> None:
        told = text.decode(errors="replace")
        self.text += told
        if level == ERROR:
            sys.stderr.write(told)
            sys.stderr.flush()


class Drafts:
    """Drafts for one sequence, from the package's own prompt lookup.

    drafted, accepted: the number of tokens that were proposed, and how many of them stayed.
    """

    def __init__(self, prompt: list[int], tokens: int, most: int) -> None:
        """
        Args:
            tokens: the most tokens that follow the prompt.
            most: the most drafts at once; 0 proposes nothing.
        """
        self.drafted = self.accepted = 0
        self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=most) if most else None
        self._ids = np.empty(len(prompt) + tokens, dtype=np.intc)
        self._ids[: len(prompt)] = prompt
        self._start = len(prompt)
        self._known = 0

    def after(self, ids: list[int]) -> list[int]:
        """Drafts that follow the sequence's ``ids``. These begin with the ids of the last call."""
        if self._lookup is None:
            return []
        end = self._start + len(ids)
        self._ids[self._start + self._known : end] = ids[self._known :]
        self._known = len(ids)
        found: list[int] = self._lookup(self._ids[:end]).tolist()
        # No draft is needed after the last token.
        found = found[: len(self._ids) - end - 1]
        self.drafted += len(found)
        return found


class Model:
    """One file in one context, which holds one sequence."""

    def __init__(self, file: str, context_length: int, threads: int) -> None:
        """
        Raises:
            ValueError: llama.cpp cannot load the file, or has no memory for the context.
        """
        self._log = Log()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise ValueError("llama.cpp cannot load this file")
        self._parameters = llama_cpp.llama_context_default_params()
        self._parameters.n_ctx = context_length
        self._parameters.n_threads = self._parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, self._parameters)
        if not self._context:
            raise ValueError(f"llama.cpp cannot make a context of {context_length} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = int(llama_cpp.llama_n_batch(self._context))
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))

    def facts(self) -> dict[str, Any]:
        """Its version, how it was built, and the settings that its speed and its values depend on."""
        context, text = self._context, self._log.text
        found = FLASH_ATTENTION.findall(text)
        return {
            "package": llama_cpp.__version__,
            "ggml": _told("ggml_version"),
            "ggml_commit": _told("ggml_commit"),
            "system_info": llama_cpp.llama_print_system_info().decode(),
            "threads": int(llama_cpp.llama_n_threads(context)),
            "n_ctx": int(llama_cpp.llama_n_ctx(context)),
            "n_batch": self._batch,
            "n_ubatch": int(llama_cpp.llama_n_ubatch(context)),
            "type_k": _told("ggml_type_name", self._parameters.type_k),
            "type_v": _told("ggml_type_name", self._parameters.type_v),
            "flash_attention": found[-1] if found else "unknown",
            "buffers": {f"{where} {what}": size for where, what, size in BUFFER.findall(text)},
            "mmap": "CPU_Mapped" in text,
            "vocabulary": self._vocabulary,
        }

    def clear(self) -> None:
        """Forget the sequence."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def timed(self, prompt: list[int], tokens: int, lookup: int = 0, ends: tuple[int, ...] = ()) -> dict[str, Any]:
        """Read a prompt as a new sequence and continue it with the most probable tokens.

        Args:
            lookup: the most drafts in a pass, from the package's prompt lookup; 0 runs one token after the other.
            ends: tokens that end the answer.

        Returns:
            times: seconds from the start to each token. ids: the tokens. peak_bytes: of this process, so far.
            drafted, accepted: the number of tokens that were proposed, and how many of them stayed.
        """
        self.clear()
        drafts = Drafts(prompt, tokens, min(lookup, self._batch - 1))
        times: list[float] = []
        ids: list[int] = []
        started = time.perf_counter()

        def take(number: int) -> None:
            ids.append(int(self._row(number).argmax()))
            times.append(time.perf_counter() - started)

        self._extend(prompt)
        take(-1)
        while len(ids) < tokens and ids[-1] not in ends:
            drafted = drafts.after(ids)
            self._extend([ids[-1], *drafted], all_logits=bool(drafted))
            for number, draft in enumerate([*drafted, None]):
                take(number if drafted else -1)
                drafts.accepted += ids[-1] == draft
                if ids[-1] != draft or len(ids) == tokens or draft in ends:
                    break
            if drafted:
                # All but the latest token stay.
                llama_cpp.llama_memory_seq_rm(self._memory, 0, len(prompt) + len(ids) - 1, -1)
        counts = {"drafted": drafts.drafted, "accepted": drafts.accepted}
        return {"times": times, "ids": ids, "peak_bytes": _peak_bytes(), **counts}

    def logits(self, ids: list[int], one_by_one: bool) -> Any:
        """Extend the sequence. The logits after each token, ``(T, V)`` in fp32.

        Args:
            one_by_one: one step for each token, as in a generation; otherwise all in batches, as in a prompt.
        """
        found = np.empty((len(ids), self._vocabulary), dtype=np.float32)
        size = 1 if one_by_one else self._batch
        for first in range(0, len(ids), size):
            part = ids[first : first + size]
            self._extend(part, all_logits=True)
            for number in range(len(part)):
                found[first + number] = self._row(number)
        return found

    def _extend(self, ids: list[int], all_logits: bool = False) -> None:
        """Extend the sequence. Only the last token has logits, unless ``all_logits``."""
        for first in range(0, len(ids), self._batch):
            part = ids[first : first + self._batch]
            # The batch only points to these, so they must outlive it.
            tokens = (llama_cpp.llama_token * len(part))(*part)
            wanted = (ctypes.c_int8 * len(part))(*[1] * len(part))
            batch = llama_cpp.llama_batch_get_one(tokens, len(part))
            if all_logits:
                batch.logits = wanted
            if code := llama_cpp.llama_decode(self._context, batch):
                raise ValueError(f"llama_decode ended with {code} on {len(part)} tokens")

    def _row(self, number: int) -> Any:
        """The logits of a token of the last batch. They are a view that is valid until the next batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, number)
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))


def _peak_bytes() -> int | None:
    """The highest resident set of this process; None if the platform does not tell. Mapped pages count."""
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return None
    return int(fields["VmHWM"].split()[0]) * 1024


def _told(function: str, *arguments: int) -> str:
    """The text that a function of the library returns, even if the package lacks it; 'unknown' if there is none."""
    try:
        asked = getattr(llama_cpp.llama_cpp._lib, function)
    except AttributeError:
        return "unknown"
    asked.restype = ctypes.c_char_p
    return str((asked(*arguments) or b"unknown").decode())


def answer(model: Model, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The answer to one request, and the bytes that follow it."""
    kind = request["kind"]
    if kind == "timed":
        return model.timed(request["prompt"], request["tokens"], request["lookup"], tuple(request["ends"])), b""
    if kind == "clear":
        model.clear()
        return {}, b""
    found = model.logits(request["ids"], request["one_by_one"])
    return {"shape": list(found.shape), "bytes": found.nbytes}, found.tobytes()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Open the model that the first request names, then answer until there are no more requests."""

    def write(found: dict[str, Any], follows: bytes = b"") -> None:
        answers.write(json.dumps(found).encode() + b"\n" + follows)
        answers.flush()

    try:
        opening = json.loads(requests.readline())
        model = Model(opening["file"], opening["context_length"], opening["threads"])
        write(model.facts())
        for line in requests:
            write(*answer(model, json.loads(line)))
    except (ValueError, OSError, MemoryError, AttributeError, TypeError) as error:
        # In another version of the package, a function may be missing or have other arguments.
        write({"error": str(error) or type(error).__name__})


def main() -> None:
    # Standard output is for the answers, so anything else that is printed there goes to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
