"""The kernels compile for the GPUs that we name, and spill no register. No GPU is needed."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[4]
# 4, 5, 6 and 8 bits; one level and two; with minimums and without; groups of 16 and 32.
KINDS = ("Q4_K", "Q5_0", "Q6_K", "Q8_0")
TARGETS = (80, 89, 90)


BLOCKS = ("_sum_inputs", "_expand", "_contract")
AROUND = ("_embed", "_project", "_rotate_and_store", "_attend", "_combine", "_reduce_add", "_normalise_add")


def compiled(target: int) -> list[dict[str, Any]]:
    return [kernel for kernel in every_kernel() if kernel["target"] == target]


@cache
def every_kernel() -> list[dict[str, Any]]:
    """Compiled in another process, because kernels run in the interpreter here."""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = ["--kinds", ",".join(KINDS), "--shapes", "4096x14336"]
    arguments += ["--targets", ",".join(map(str, TARGETS))]
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.griffin.decode.cuda.compiled", *arguments],
            cwd=ROOT, env={**settings, "TRITON_CACHE_DIR": folder}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(target: int) -> None:
    """In steps, and in passes of every size."""
    found = compiled(target)

    assert {(kernel["kernel"], kernel["case"].split()[0]) for kernel in found} == {
        *((name, block) for name in (*BLOCKS, "_normalise") for block in ("gated", "plain")),
        *((name, "around") for name in (*AROUND, "_normalise")),
        *((name, kind) for name in ("_arrange", "_project", "_expand", "_sum_rows") for kind in KINDS),
    }
    # Sines of large angles need a little memory, for any number of tokens.
    assert [kernel for kernel in found if kernel["stack"] and kernel["kernel"] != "_rotate_and_store"] == []
    assert all(0 < kernel["registers"] < 256 for kernel in found)


@pytest.mark.parametrize("target", TARGETS)
def test_passes_add_in_the_order_of_steps(target: int) -> None:
    """Each kernel sums tiles of the step's shape and layout. Norms of several tokens have a kernel of their own."""
    sums: dict[tuple[str, str], set[str]] = {}
    for kernel in compiled(target):
        block, *size = kernel["case"].split()
        if block in ("gated", "plain", "around"):
            sums.setdefault((block, size[-1]), set()).update(kernel["sums"])

    for block in ("gated", "plain", "around"):
        assert len(sums[block, "1"]) > 2
        assert all(sums[block, tokens] == sums[block, "1"] for tokens in ("2", "4", "8", "16"))
