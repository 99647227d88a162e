"""The compiled functions, held to each instruction set that they were compiled for."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from griffin.model.matrix.native import library

# As in instructions.h: each has all that the ones before have. Without VNNI a step is that of AVX2.
PLAIN, AVX2, AVX512, AVX512_VNNI, AVX512_BF16 = range(5)
NAMES = {PLAIN: "plain", AVX2: "avx2", AVX512: "avx512", AVX512_VNNI: "vnni", AVX512_BF16: "bf16"}

EACH_FOR_STEPS = pytest.mark.parametrize("instructions", [PLAIN, AVX2, AVX512_VNNI], ids=NAMES.__getitem__)
EACH_FOR_WIDENING = pytest.mark.parametrize("instructions", [PLAIN, AVX2, AVX512, AVX512_BF16], ids=NAMES.__getitem__)


@contextmanager
def restricted(most: int) -> Iterator[None]:
    """Steps that are opened meanwhile, and functions, use no more than these; the test is skipped where they cannot."""
    native = library()
    if native is None:
        pytest.skip("griffin/_native was not built: no C compiler")
    try:
        if native.griffin_restrict(most) != most:
            pytest.skip(f"this processor has no {NAMES[most]}")
        yield
    finally:
        native.griffin_restrict(AVX512_BF16)
