"""A mapped file that changes while it is used gives an error: no bus error, and no wrong answer."""

import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from griffin import Pruning, Sampling
from griffin.engine.engine import Engine
from griffin.errors import LoadError, WeightsChanged
from griffin.model import guard, mapped
from griffin.model.checkpoint.mapped import mapped_model
from tests.tiny import tiny_model

guarded = pytest.mark.skipif(not guard.available(), reason="griffin/_native was not built: no C compiler")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine whose FF weights, 200 kB, are in a file under ``tmp_path``."""
    tiny_model("llama", intermediate_size=512).save_pretrained(tmp_path / "tiny")
    return Engine(mapped_model(tmp_path / "tiny", torch.float32, tmp_path / "by-neuron", "tiny"))


def weights(folder: Path) -> Path:
    (file,) = (folder / "by-neuron").rglob(mapped.FILE)
    return file


def ids(engine: Engine, sparsity: float) -> list[int]:
    sampling = Sampling(max_tokens=4, temperature=0, ignore_eos=True)
    return [token.id for token in engine.generate(list(range(3, 30)), sampling, Pruning(sparsity))]


def cut(file: Path) -> None:
    with file.open("r+b") as content:
        content.truncate(8192)


def written_again(file: Path) -> None:
    size = file.stat().st_size
    with file.open("wb") as content:
        content.write(bytes(size))


def altered(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(9000)
        content.write(b"\xff" * 100)


@guarded
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("change", [cut, written_again, altered])
def test_a_file_that_changes_is_noticed(
    change: Callable[[Path], None], sparsity: float, engine: Engine, tmp_path: Path
) -> None:
    """The request that reads it fails, and so do all later requests."""
    ids(engine, sparsity)
    change(weights(tmp_path))
    for again in (sparsity, 0.25):
        with pytest.raises(WeightsChanged, match="was changed while it was served; start the server again"):
            ids(engine, again)
    with pytest.raises(WeightsChanged):
        engine.rebuild()


@guarded
def test_a_file_that_changes_in_the_middle_of_an_answer(engine: Engine, tmp_path: Path) -> None:
    """Each token of the full model reads the file, so the next token fails."""
    answer = engine.generate([3, 4, 5], Sampling(max_tokens=9, ignore_eos=True), Pruning(0.0))
    next(answer)
    cut(weights(tmp_path))
    with pytest.raises(WeightsChanged):
        list(answer)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_file_that_is_removed_or_replaced_changes_nothing(sparsity: float, engine: Engine, tmp_path: Path) -> None:
    """The mapped file still exists for the process."""
    before = ids(engine, sparsity)
    file = weights(tmp_path)
    other = file.with_name("other")
    other.write_bytes(bytes(file.stat().st_size))
    other.rename(file)
    assert ids(engine, sparsity) == before
    file.unlink()

    assert ids(engine, sparsity) == before


def test_the_file_is_not_for_writing(engine: Engine, tmp_path: Path) -> None:
    """It cannot be opened for writing by mistake."""
    assert weights(tmp_path).stat().st_mode & 0o222 == 0


@guard.whole_while_read("model")
def read_while_it_shrinks(file: Path, view: mmap.mmap) -> None:
    with file.open("r+b") as shrinking:
        shrinking.truncate(mmap.PAGESIZE)
    assert view[2 * mmap.PAGESIZE] == 0


@guarded
def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """Loading fails."""
    file = tmp_path / "weights"
    file.write_bytes(b"\x01" * 4 * mmap.PAGESIZE)
    with file.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[3 * mmap.PAGESIZE] == 1
        with pytest.raises(LoadError, match="was changed while it was read"):
            read_while_it_shrinks(file, view)
    with guard.whole_while_read("model"):
        pass


def read_and_fail(file: Path, change: Callable[[Path], object]) -> None:
    with guard.whole_while_read("model", [file]):
        change(file)
        raise ValueError("damaged")


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"other"), Path.unlink])
def test_a_file_that_changes_while_its_reader_fails(change: Callable[[Path], object], tmp_path: Path) -> None:
    """The error is the change, which the user can mend, not what a parser says about half a file."""
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    with pytest.raises(LoadError, match="'model' was changed while it was read"):
        read_and_fail(file, change)


def test_a_reader_that_fails_by_itself(tmp_path: Path) -> None:
    """Its own error is raised."""
    with pytest.raises(ValueError, match="damaged"):
        read_and_fail(tmp_path, Path.stat)


UNGUARDED = """
import mmap, sys
from pathlib import Path
if sys.argv[2] == "guarded":
    from griffin.model import guard
    assert guard.available()
file = Path(sys.argv[1])
file.write_bytes(bytes(2 * mmap.PAGESIZE))
with file.open("r+b") as content, mmap.mmap(content.fileno(), 0) as view:
    content.truncate(0)
    view[0]
"""


@guarded
@pytest.mark.parametrize(("kind", "code"), [("guarded", 0), ("plain", -7)])
def test_the_guard_is_what_keeps_the_process(kind: str, code: int, tmp_path: Path) -> None:
    """Without the guard, the signal ends the process."""
    command = [sys.executable, "-c", UNGUARDED, str(tmp_path / "file"), kind]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == code, ended.stderr
