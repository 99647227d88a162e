"""A file whose own codes are kept is refused for the same faults as any other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from griffin import load
from griffin.errors import LoadError
from griffin.model.checkpoint import gguf_file, gguf_in_place
from tests.griffin.model.checkpoint.files import mixed_file
from tests.griffin.model.quantised import HALVES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return mixed_file(tmp_path / "mixed.gguf", "llama")


def offset(path: Path, name: str) -> int:
    """The place where a tensor begins."""
    tensor = gguf_file.read(path).tensors[name]
    return path.read_bytes().index(tensor.data[:64].tobytes())


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.ffn_gate.weight",
        "blk.1.attn_q.weight",
        "blk.2.ffn_down.weight",
        "blk.1.ffn_down.weight",
        "output.weight",
    ],
)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_scales_that_are_no_numbers(path: Path, name: str, dtype: str, tmp_path: Path) -> None:
    """The error names the tensor, for the types Q4_K, Q5_0, Q2_K, Q4_1 and Q8_0. No cache is written."""
    kind = gguf_file.read(path).tensors[name].type
    content = bytearray(path.read_bytes())
    place = offset(path, name) + HALVES[kind][-1]
    content[place : place + 2] = torch.tensor([float("nan")], dtype=torch.float16).numpy().tobytes()
    path.write_bytes(content)

    called = name if dtype == "auto" else ""
    with pytest.raises(
        LoadError, match=f"mixed.gguf' has weights that are infinite or not a number: .*{called}; download"
    ):
        load(str(path), device="cpu", dtype=dtype, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_file_that_changes_while_it_is_read(change: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one file and half of another is no model."""
    content, lay_rows = path.read_bytes(), gguf_in_place.lay_rows

    def changing(*arguments: Any) -> Any:
        path.write_bytes(content[:5000] if change == "cut" else content[:-8000] + bytes(8000))
        return lay_rows(*arguments)

    monkeypatch.setattr(gguf_in_place, "lay_rows", changing)
    with pytest.raises(LoadError, match="was changed while it was read"):
        load(str(path), device="cpu")
