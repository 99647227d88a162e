"""Restrict the compiled functions to one of the instruction sets for which they were compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from griffin.model.matrix.native import library

# As in instructions.h: each set includes those before it. A step without VNNI is the step for AVX2.
PLAIN, AVX2, AVX512, AVX512_VNNI, AVX512_BF16 = range(5)
NAMES = {PLAIN: "plain", AVX2: "avx2", AVX512: "avx512", AVX512_VNNI: "vnni", AVX512_BF16: "bf16"}

EACH_FOR_STEPS = pytest.mark.parametrize("instructions", [PLAIN, AVX2, AVX512_VNNI], ids=NAMES.__getitem__)
EACH_FOR_WIDENING = pytest.mark.parametrize("instructions", [PLAIN, AVX2, AVX512, AVX512_BF16], ids=NAMES.__getitem__)


@contextmanager
def restricted(most: int) -> Iterator[None]:
    """In this context, functions and newly opened steps use no instructions above ``most``.

    The test is skipped if the processor has no such instructions.
    """
    native = library()
    if native is None:
        pytest.skip("griffin/_native was not built: no C compiler")
    try:
        if native.griffin_restrict(most) != most:
            pytest.skip(f"this processor has no {NAMES[most]}")
        yield
    finally:
        native.griffin_restrict(AVX512_BF16)
