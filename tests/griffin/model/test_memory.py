"""Memory for several tensors in one allocation."""

import mmap

import pytest
import torch

from griffin.model.memory import HUGE_PAGE, PIECE, Room, untouched


@pytest.mark.parametrize("huge", [True, False])
def test_tensors_lie_side_by_side(monkeypatch: pytest.MonkeyPatch, huge: bool) -> None:
    """Each has its own cache lines and its own size, with huge pages and without."""
    if not huge:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    first, none, second = untouched([30, 0, 70])
    first.fill_(1)

    assert [len(tensor) for tensor in (first, none, second)] == [30, 0, 70]
    assert not second.any()
    assert second.data_ptr() - first.data_ptr() == 64
    assert first.data_ptr() % 64 == 0


def test_each_tensor_has_its_own_storage() -> None:
    """So a tensor that is no longer used can be told from the others."""
    first, second = untouched([8, 8])

    assert len(first.untyped_storage()) >= 8
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert first.dtype == torch.uint8


def test_memory_that_is_refused() -> None:
    """The error says how much was asked for."""
    with pytest.raises(MemoryError, match=r"no 4503599\.6 GB of memory: Cannot allocate memory"):
        untouched([1 << 52])


def test_large_memory_begins_at_a_huge_page() -> None:
    """A small tensor does not begin one."""
    first, second = untouched([HUGE_PAGE, 8])

    assert first.data_ptr() % HUGE_PAGE == 0
    assert second.data_ptr() == first.data_ptr() + HUGE_PAGE


def test_a_room_lays_matrices_side_by_side() -> None:
    """Until a piece is full. A matrix larger than a piece gets its own."""
    room = Room()
    first, second = room.matrix(3, 5, torch.int8), room.matrix(2, 4, torch.bfloat16)
    large, third = room.matrix(1, PIECE + 1, torch.uint8), room.matrix(0, 4, torch.float32)

    assert second.data_ptr() == first.data_ptr() + 64
    assert (first.shape, second.shape, second.dtype) == ((3, 5), (2, 4), torch.bfloat16)
    assert (large.numel(), third.shape) == (PIECE + 1, (0, 4))
