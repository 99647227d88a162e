"""Triton's cache in an image that has no C compiler.

On the first use of a GPU, Triton compiles a small C module that links to the CUDA driver. ``python triton_cache.py``
compiles it during the image's build, which has a compiler but no GPU. At run time ``ImageCache`` finds the module in
the image, even if a volume is mounted over the cache folder. The kernels themselves need no C compiler.
"""
# mypy: disable-error-code="import-untyped"

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if importlib.util.find_spec("triton") is None:
    # torch for the CPU comes without Triton.
    print("triton is not installed: nothing to compile")
    sys.exit(0)

import triton
from triton.runtime.cache import FileCacheManager

BUILT = Path(__file__).parent / f"triton-{triton.__version__}"


class ImageCache(FileCacheManager):  # type: ignore[misc]  # untyped in triton
    """The cache folder, and after it the image's own module. TRITON_CACHE_MANAGER names this class."""

    def get_file(self, filename: str) -> str | None:
        cached: str | None = super().get_file(filename)
        # Found by name, because the key differs between machines: it depends on the place of the program `file`.
        built = BUILT / filename
        return cached or (str(built) if built.is_file() else None)


def compile_driver_module() -> None:
    """Let Triton compile the module into ``BUILT``.

    Raises:
        subprocess.CalledProcessError: the C compiler failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TRITON_CACHE_DIR": folder, "TRITON_LIBCUDA_PATH": folder}
        # A stand-in for the driver. The module is linked to it and loaded with it, but calls none of its functions.
        stub = Path(folder, "libcuda.so.1")
        command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stub), "-x", "c", os.devnull]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(stub), ctypes.RTLD_GLOBAL)
        sys.setdlopenflags(os.RTLD_LAZY)

        from triton.backends.nvidia.driver import CudaUtils

        CudaUtils()
        BUILT.mkdir(exist_ok=True)
        for module in (modules := list(Path(folder).glob("*/*.so"))):
            print(f"compiled {shutil.copy(module, BUILT)}")
        if not modules:
            sys.exit("triton compiled nothing where it was expected: its cache has changed")


if __name__ == "__main__":
    compile_driver_module()
