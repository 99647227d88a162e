"""The kernels compile with other compilers and for other processors, and compute the right products."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SOURCES = [ROOT / "tests/griffin/decode/c/products.c", ROOT / "griffin/model/matrix/c/grouped.c"]
FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-pthread", "-static", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]


def compiled(compiler: str, target: Path) -> Path:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def check(*command: str | Path) -> str:
    """The program's output, which names the instruction sets that it tried."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clang(tmp_path: Path) -> None:
    """Compiled with clang, on each instruction set of this processor."""
    assert "plain" in check(compiled("clang", tmp_path / "products"))


def test_aarch64(tmp_path: Path) -> None:
    """On another processor it runs in an emulator; without one it is only compiled."""
    program = compiled("aarch64-linux-gnu-gcc", tmp_path / "products")
    own = platform.machine() == "aarch64"
    if not own and shutil.which("qemu-aarch64") is None:
        pytest.skip("it is compiled, but there is no qemu-aarch64 to run it")

    assert check(*([] if own else ["qemu-aarch64"]), program) == "plain\n"
