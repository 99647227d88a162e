"""What makes two models different for their stored answers."""

from pathlib import Path

from griffin import Checkpoint, load
from griffin.experiments.common.study import Study
from griffin.model.matrix.modules import matrices
from tests.griffin.model.checkpoint.files import mixed_file


def identity(checkpoint: Checkpoint, folder: Path) -> str:
    return str(Study(checkpoint, None, folder).facts()["identity"])


def test_codes_are_part_of_an_identity(tmp_path: Path) -> None:
    """One changed byte in a file's codes makes another model; loading it again does not."""
    path = mixed_file(tmp_path / "mixed.gguf", "qwen2")
    first, second = (load(str(path), device="cpu", cache_dir=tmp_path) for _ in range(2))
    plain = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path)
    own = identity(first, tmp_path)

    assert identity(second, tmp_path) == own
    assert identity(plain, tmp_path) != own
    for matrix in (matrix for matrix in matrices(second.model) if matrix.format.startswith("grouped")):
        for tensor in (*matrix.planes, *matrix.shared):
            tensor[0, 3] ^= 1
            assert identity(second, tmp_path) != own
            tensor[0, 3] ^= 1
    assert identity(second, tmp_path) == own
