"""The kernels compile for the GPUs that we name, without one here, and spill no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[4]
# Of 4, 6 and 8 bits: with one level and two, with minimums and without, in groups of 16 and 32.
KINDS = ("Q4_K", "Q5_0", "Q6_K", "Q8_0")
TARGETS = (80, 89, 90)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(target: int, tmp_path: Path) -> None:
    """In a process of its own: here, kernels run in the interpreter."""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = ["--kinds", ",".join(KINDS), "--shapes", "4096x14336", "--targets", str(target)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.griffin.decode.cuda.compiled", *arguments],
        cwd=ROOT, env={**settings, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]

    assert {(kernel["kernel"], kernel["case"].split()[0]) for kernel in found} == {
        *((name, block) for name in ("_sum_inputs", "_expand", "_contract") for block in ("gated", "plain")),
        *((name, kind) for name in ("_arrange", "_project", "_expand", "_sum_rows") for kind in KINDS),
    }
    assert [kernel for kernel in found if kernel["stack"]] == []
    assert all(kernel["target"] == target and 0 < kernel["registers"] < 256 for kernel in found)
