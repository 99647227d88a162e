"""The dtype of a device when the user names none."""

from itertools import chain, repeat

import pytest
import torch

from griffin.model import dtype as precision
from griffin.model.dtype import fastest_dtype


@pytest.mark.parametrize(("ratio", "expected"), [(0.25, torch.bfloat16), (2.5, torch.float32)])
def test_the_faster_one_is_taken(ratio: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured times decide, with and without hardware for bfloat16."""
    monkeypatch.setattr(precision, "_runs", lambda dtype: repeat(ratio if dtype == torch.bfloat16 else 1.0))

    assert fastest_dtype(torch.device("cpu")) == expected


def test_interrupted_runs_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no difference is clear, more rounds are timed. The shortest run of each counts."""
    runs = {torch.bfloat16: chain([9.0] * 8, repeat(1.0)), torch.float32: chain([5.0] * 8, repeat(4.0))}
    monkeypatch.setattr(precision, "_runs", lambda dtype: runs[dtype])

    assert fastest_dtype(torch.device("cpu")) == torch.bfloat16


def test_the_measurement_is_the_same_each_time() -> None:
    """Otherwise two starts could give different answers."""
    assert len({fastest_dtype(torch.device("cpu")) for _ in range(5)}) == 1


def test_other_devices_get_what_always_works() -> None:
    """A device that is neither CUDA nor a CPU gets float32."""
    assert fastest_dtype(torch.device("meta")) == torch.float32
