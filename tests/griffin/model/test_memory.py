"""Memory that is asked for at once."""

import mmap

import pytest
import torch

from griffin.model.memory import untouched


@pytest.mark.parametrize("huge", [True, False])
def test_tensors_lie_side_by_side(monkeypatch: pytest.MonkeyPatch, huge: bool) -> None:
    """Each on lines of its own and of its own size, with and without pages to ask for."""
    if not huge:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    first, none, second = untouched([30, 0, 70])
    first.fill_(1)

    assert [len(tensor) for tensor in (first, none, second)] == [30, 0, 70]
    assert not second.any()
    assert second.data_ptr() - first.data_ptr() == 64
    assert first.data_ptr() % 64 == 0


def test_each_is_a_storage() -> None:
    """One that is no longer used can be told from the others."""
    first, second = untouched([8, 8])

    assert len(first.untyped_storage()) >= 8
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert first.dtype == torch.uint8


def test_memory_that_is_refused() -> None:
    """Says how much it was."""
    with pytest.raises(MemoryError, match=r"no 4503599\.6 GB of memory: Cannot allocate memory"):
        untouched([1 << 52])
