"""The engine beside llama.cpp on the same file: the bytes that each reads, and a table of both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from griffin.experiments.speed.contestants import LLAMA_CPP, STATISTIC_NAMES
from griffin.experiments.speed.rows import Row, Spread
from griffin.model.accounting import Accounting
from griffin.model.checkpoint.gguf_file import parts
from griffin.request import METHOD_NAMES

# Tables of which a token looks up one row. If the file has no head, the table of tokens is also the head.
TOKENS, POSITIONS, HEAD = "token_embd.weight", "position_embd.weight", "output.weight"
# llama.cpp's keys and values.
KV_DTYPE = torch.float16
# The rows to show: the engine's and llama.cpp's.
SHOWN = ("full", *STATISTIC_NAMES.values(), *METHOD_NAMES, LLAMA_CPP)


def accounting_of_file(accounting: Accounting, dtype: torch.dtype, file: Path) -> Accounting:
    """The accounting of a program that reads a file's weights as they are.

    Args:
        accounting: of the engine, whose model has the same parameters.
        dtype: of the engine's keys and values.
    """
    kv_bytes = accounting.kv_bytes * KV_DTYPE.itemsize // dtype.itemsize
    return replace(accounting, weight_bytes=weight_bytes(file), kv_bytes=kv_bytes)


def weight_bytes(file: Path) -> int:
    """The bytes of a file's tensors that a token reads: all but the tables of which it looks up one row."""
    tensors = {tensor.name: tensor for part in parts(file) for tensor in GGUFReader(part).tensors}
    looked_up = [TOKENS, POSITIONS] if HEAD in tensors else [POSITIONS]
    tables = [tensors[name] for name in looked_up if name in tensors]
    one_row_each = sum(int(table.n_bytes) // int(table.shape[-1]) for table in tables)
    return sum(int(tensor.n_bytes) for tensor in tensors.values() if tensor.name not in looked_up) + one_row_each


def beside_table(rows: Sequence[Row], prompt_tokens: int) -> str:
    """The engine's rows and llama.cpp's. Each ratio compares two runs of the same round."""
    lines = [
        f"{'beside llama.cpp':<18}{'sparsity':>9}{'prompt tokens/s':>17}{'x llama.cpp':>13}{'low - high':>15}"
        f"{'tokens/s':>11}{'x llama.cpp':>13}{'low - high':>15}"
    ]
    for row in rows:
        if row.name not in SHOWN or row.over_llama_cpp is None or row.prompt_over_llama_cpp is None:
            continue
        lines.append(
            f"{row.name:<18}{f'{row.sparsity * 100:.3g} %' if row.sparsity else '-':>9}"
            f"{prompt_tokens / row.prefill_seconds.median:>17.1f}{_ratio(row.prompt_over_llama_cpp)}"
            f"{row.tokens_per_second:>11.1f}{_ratio(row.over_llama_cpp)}"
        )
    return "\n".join(lines)


def _ratio(spread: Spread) -> str:
    return f"{f'{spread.median:.2f}x':>13}{f'{spread.lowest:.2f} - {spread.highest:.2f}':>15}"


def as_json(file: Path, accounting: Accounting, facts: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's side of a run, as JSON holds it. ``accounting``: its own."""
    return {"file": file.name, "weight_bytes": accounting.weight_bytes, **facts}
