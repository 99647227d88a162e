"""Chunks of prompts in files: other processes find them, whole or not at all, within a budget, never damaged."""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from griffin import Engine, Pruning, Sampling
from griffin.engine import prefix_files
from griffin.engine.prefix_chunk import Chunk
from griffin.engine.prefix_files import PrefixFiles
from griffin.engine.prefixes import PrefixStore
from griffin.errors import LoadError
from griffin.method.statistic import Sums
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
Open = Callable[..., PrefixFiles]

PLENTY = 2**30
GREEDY = Sampling(temperature=0, max_tokens=8, logprobs=2)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """A function that opens the folder as another process would."""
    all_files: list[PrefixFiles] = []

    def make(budget: int = PLENTY, model: str = "a", pending: int = PLENTY) -> PrefixFiles:
        all_files.append(PrefixFiles(tmp_path / "kept", budget, pending, model))
        return all_files[-1]

    yield make
    for files in all_files:
        files.close(5)


def chunk(seed: int = 0, floats: int = 8) -> Chunk:
    torch.manual_seed(seed)
    keys_values = torch.randn(2, 2, 1, floats, 4).bfloat16()
    return Chunk(keys_values, Sums(torch.rand(2, 6), torch.randn(2, 4), torch.randn(2, 6), torch.zeros(2, 6), 8))


def written(files: PrefixFiles, *names: bytes, floats: int = 8) -> None:
    for number, name in enumerate(names):
        files.add(name, chunk(number, floats))
    files.close(5)


def kept(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file())


def test_a_chunk_comes_back_as_it_was(opened: Open, tmp_path: Path) -> None:
    """It is found by name with the same bits. Only the owner may read its file."""
    written(opened(), b"one")
    found, expected = opened().get(b"one"), chunk()

    assert found is not None
    assert found.sums.tokens == 8
    assert all(torch.equal(found.tensors[name], values) for name, values in expected.tensors.items())
    assert opened().get(b"two") is None
    (file,) = kept(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_another_model_finds_nothing(opened: Open) -> None:
    """Each model has a folder of its own."""
    written(opened(), b"one")

    assert opened(model="b").get(b"one") is None


@pytest.mark.parametrize("damage", ["flip", "flip the header", "cut", "empty", "swap"])
def test_a_damaged_file_is_removed_and_never_served(
    damage: str, opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log names it."""
    written(opened(), b"one", b"two")
    first, second = kept(tmp_path)
    content = bytearray(first.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    elif damage == "flip the header":
        content[40] ^= 1
    elif damage == "cut":
        del content[-100:]
    elif damage == "empty":
        content.clear()
    else:
        content[:] = second.read_bytes()
    first.write_bytes(content)

    assert opened().get(bytes.fromhex(first.stem)) is None
    assert f"{first} is damaged" in caplog.text
    assert kept(tmp_path) == [second]


def test_the_budget_holds_and_the_oldest_go_first(opened: Open, tmp_path: Path) -> None:
    """The budget is for all models. A used prompt loses its last chunks first."""
    written(opened(), b"one", b"two", b"three", floats=100)
    size = kept(tmp_path)[0].stat().st_size
    files = opened(budget=4 * size + size // 2, model="b")
    opened().use([b"one", b"two"])
    written(files, b"four", b"five", floats=100)

    assert {bytes.fromhex(path.stem) for path in kept(tmp_path)} == {b"one", b"two", b"four", b"five"}
    written(opened(budget=4 * size + size // 2, model="b"), b"six", floats=100)
    assert {bytes.fromhex(path.stem) for path in kept(tmp_path)} == {b"one", b"four", b"five", b"six"}


def test_old_partial_files_are_removed(opened: Open, tmp_path: Path) -> None:
    """Another process may still be writing a younger one."""
    files = opened()
    (folder,) = (tmp_path / "kept").iterdir()
    old, young = folder / "aa-1-ff.partial", folder / "bb-1-ff.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    written(files, b"one")

    assert young in kept(tmp_path)
    assert old not in kept(tmp_path)


def test_only_its_own_files_are_ever_removed(opened: Open, tmp_path: Path) -> None:
    """If the user names a folder of models by mistake, nothing in it is removed."""
    others = [tmp_path / "kept" / "llama" / "model.safetensors", tmp_path / "kept" / "prefixes-of-mine" / "notes.txt"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 10_000)
        os.utime(path, (0, 0))
    (tmp_path / "kept" / "empty").mkdir()
    written(opened(budget=2000), *(bytes([number]) for number in range(5)), floats=1)

    assert all(path.is_file() for path in others)
    assert (tmp_path / "kept" / "empty").is_dir()
    assert 0 < len(kept(tmp_path)) - len(others) < 5


def test_a_full_disk_is_told_once_and_stops_nothing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No partial file is left. Once there is room, chunks are written again."""

    class Full:
        def __init__(self, path: Path) -> None:
            path.touch()

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    files, real = opened(), prefix_files._new_file
    monkeypatch.setattr(prefix_files, "_new_file", Full)
    for name in (b"one", b"two"):
        files.add(name, chunk())
    while files._waiting_bytes:
        time.sleep(0.01)
    assert caplog.text.count("No space left on device") == 1
    assert kept(tmp_path) == []

    monkeypatch.setattr(prefix_files, "_new_file", real)
    written(files, b"three")
    assert [bytes.fromhex(path.stem) for path in kept(tmp_path)] == [b"three"]


def test_a_slow_disk_takes_no_memory(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks beyond the limit of waiting bytes are not written, and the log says so."""
    gate = threading.Event()
    monkeypatch.setattr(PrefixFiles, "_write", lambda self, pending: gate.wait(10))
    files = opened(pending=chunk().bytes)
    files.add(b"one", chunk())
    files.add(b"two", chunk())
    gate.set()

    assert "the disk is slower than the prompts" in caplog.text


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """At the start; the error names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match=f"prefixes cannot be kept in {tmp_path / 'file'}"):
        PrefixFiles(tmp_path / "file", PLENTY, PLENTY, "a")


def test_several_write_and_read_at_once(opened: Open, tmp_path: Path) -> None:
    """As servers with a shared folder do: every chunk that is found is whole."""
    names = [bytes([number]) * 4 for number in range(20)]
    writers = [opened() for _ in range(3)]
    reader = opened()
    for name in names:
        for files in writers:
            files.add(name, chunk(name[0], 50))
        found = reader.get(name)
        assert found is None or torch.equal(found.keys_values, chunk(name[0], 50).keys_values)
    for files in writers:
        files.close(10)

    assert len(kept(tmp_path)) == len(names)
    for name in names:
        found = reader.get(name)
        assert found is not None
        assert torch.equal(found.keys_values, chunk(name[0], 50).keys_values)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("pruning", [Pruning(), Pruning(0.5), Pruning(0.5, method="griffin+")])
def test_an_engine_goes_on_with_what_another_has_read(
    model_type: str, pruning: Pruning, opened: Open, prompts: Prompts
) -> None:
    """Tokens and probabilities do not change. Chunks count as found in files, and later as found in memory."""
    model, ids = tiny_model(model_type), prompts(1, 200)
    plain = list(Engine(model, prefill_chunk=8).generate(ids, GREEDY, pruning))
    files = opened()
    list(Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8, files)).generate(ids, GREEDY, pruning))
    files.close(5)
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8, opened()))
    for known_from_files in (True, False):
        with engine.read(ids, pruning) as read:
            assert read.cached_tokens == (72 if pruning.method == "griffin+" else 192)
            assert read.cached_in_files == (read.cached_tokens if known_from_files else 0)
            found = list(read.generate(GREEDY))

        assert [(token.id, token.logprobs) for token in found] == [(token.id, token.logprobs) for token in plain]


def test_a_damaged_chunk_ends_what_is_known(opened: Open, tmp_path: Path, prompts: Prompts) -> None:
    """The chunks after it are read again, and it is written again."""
    model, ids = tiny_model("llama"), prompts(2, 60)
    files = opened()
    plain = list(Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8, files)).generate(ids, GREEDY))
    files.close(5)
    damaged = max(kept(tmp_path), key=lambda path: path == files._path(PrefixStore(PLENTY, 8).names(ids)[3]))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    files = opened()
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8, files))
    with engine.read(ids) as read:
        assert (read.cached_tokens, read.cached_in_files) == (24, 24)
        assert [token.id for token in read.generate(GREEDY)] == [token.id for token in plain]
    files.close(5)
    with Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8, opened())).read(ids) as read:
        assert read.cached_in_files == 56
