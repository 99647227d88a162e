"""The kernels by other compilers and for other processors: they are compiled, and their products are right."""

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
    """What the program says that it has tried."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clang(tmp_path: Path) -> None:
    """On each instruction set that this processor has."""
    assert "plain" in check(compiled("clang", tmp_path / "products"))


def test_aarch64(tmp_path: Path) -> None:
    """Emulated, if there is an emulator; otherwise it is compiled at least."""
    program = compiled("aarch64-linux-gnu-gcc", tmp_path / "products")
    own = platform.machine() == "aarch64"
    if not own and shutil.which("qemu-aarch64") is None:
        pytest.skip("it is compiled, but there is no qemu-aarch64 to run it")

    assert check(*([] if own else ["qemu-aarch64"]), program) == "plain\n"
