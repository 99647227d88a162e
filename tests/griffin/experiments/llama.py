"""A fake llama-cpp-python for another process. It needs no compiler and no model."""

from pathlib import Path

import pytest

PACKAGE = """
import ctypes
import os
import sys
import types

import numpy as np

__version__ = "9.9"
VOCABULARY = int(os.environ["GRIFFIN_TEST_VOCABULARY"])
llama_token = ctypes.c_int32
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
llama_cpp = types.SimpleNamespace(_lib=types.SimpleNamespace())
now = types.SimpleNamespace(ids=[], rows=[], log=None, parameters=None, dies=False)


def llama_log_set(callback, _):
    now.log = callback


def llama_backend_init():
    print("this must not be taken for an answer", flush=True)


def llama_model_default_params():
    return None


def llama_context_default_params():
    return types.SimpleNamespace(type_k=1, type_v=1)


def llama_model_load_from_file(path, _):
    now.dies = b"dies" in path
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            now.log(4, b"no GGUF file", None)
            return None
    now.log(2, b"load_tensors:   CPU_Mapped model buffer size =    92.10 MiB", None)
    return 1


def llama_init_from_model(model, parameters):
    now.log(2, b"resolve_fused_ops: Flash Attention enabled", None)
    now.parameters = parameters
    return 2


def llama_get_memory(context):
    return 3


def llama_model_get_vocab(model):
    return 4


def llama_vocab_n_tokens(vocabulary):
    return VOCABULARY


def llama_n_ctx(context):
    return now.parameters.n_ctx


def llama_n_threads(context):
    return now.parameters.n_threads


def llama_n_batch(context):
    return 4


llama_n_ubatch = llama_n_batch


def llama_print_system_info():
    return b"CPU : AVX2 = 1 | AMX = 0 | OPENMP = 1 | "


def llama_memory_clear(memory, data):
    now.ids.clear()


def llama_memory_seq_rm(memory, sequence, first, last):
    del now.ids[first:]
    return True


class LlamaPromptLookupDecoding:
    # Its first draft is right, the others are not.

    def __init__(self, num_pred_tokens):
        self.most = num_pred_tokens

    def __call__(self, ids):
        return ids[-1] + 1 + 2 * np.arange(self.most)


sys.modules["llama_cpp.llama_speculative"] = sys.modules["llama_cpp"]


def llama_batch_get_one(tokens, count):
    return types.SimpleNamespace(ids=list(tokens)[:count], logits=None)


def llama_decode(context, batch):
    if now.dies:
        print("about to die", flush=True)
        os._exit(7)
    if max(batch.ids) >= VOCABULARY:
        return -1
    rows = []
    for id in batch.ids:
        now.ids.append(id)
        row = (ctypes.c_float * VOCABULARY)()
        row[(id + 1) % VOCABULARY] = len(now.ids)
        rows.append(row)
    now.rows = rows if batch.logits is not None else rows[-1:]
    return 0


def llama_get_logits_ith(context, number):
    return ctypes.cast(now.rows[number], ctypes.POINTER(ctypes.c_float))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: int) -> None:
    """Let this Python's child processes find the fake package. After each id, the next id is the most probable."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "llama_cpp.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("GRIFFIN_TEST_VOCABULARY", str(vocabulary))


def pretended_file(path: Path) -> Path:
    """A file that begins like a GGUF file."""
    path.write_bytes(b"GGUF")
    return path
