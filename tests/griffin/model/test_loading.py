"""Checkpoints from every kind of place, and a clear error of one line when there is none."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from griffin import Accounting, Engine, Pruning, Sampling
from griffin.errors import LoadError, UnsupportedModel
from griffin.model.checkpoint import folder as folder_reader
from griffin.model.checkpoint import gguf, mapped, quantised
from griffin.model.checkpoint.forms import Form
from griffin.model.checkpoint.source import embedded_file
from griffin.model.identity import identity
from griffin.model.loading import Checkpoint, load
from griffin.model.matrix.modules import matrices
from tests.tiny import tiny_model


@pytest.fixture
def directory(tmp_path: Path, smollm2: Checkpoint) -> Path:
    """A model directory as on a hub."""
    folder = tmp_path / "tiny-llama"
    tiny_model("llama", vocab_size=len(smollm2.tokenizer)).save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return folder


def test_directory(directory: Path) -> None:
    """Weights and tokenizer come from the directory, and its name is the model's name."""
    checkpoint = load(str(directory), device="cpu", dtype="bfloat16")

    assert checkpoint.name == "tiny-llama"
    assert checkpoint.model.dtype == torch.bfloat16
    assert isinstance(checkpoint.tokenizer, PreTrainedTokenizerBase)


def test_gguf_file_and_embedded_name_are_the_same_model(smollm2: Checkpoint, tmp_path: Path) -> None:
    """The embedded default is a GGUF file like any other."""
    link = tmp_path / "copy.gguf"
    link.symlink_to(embedded_file())
    checkpoint = load(str(link), device="cpu", dtype="float32")

    assert checkpoint.name == "copy"
    for ours, theirs in zip(checkpoint.model.parameters(), smollm2.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_embedded_name_in_any_case() -> None:
    """Upper and lower case do not matter."""
    assert load("smollm2-135m-instruct", device="cpu").name == "SmolLM2-135M-Instruct"


def fake_reader(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """Replace the GGUF reader, which takes seconds. Returns the list of files that it was asked to read."""
    read: list[Path] = []

    def read_gguf(path: Path, dtype: torch.dtype) -> tuple[object, PreTrainedTokenizerBase]:
        read.append(path)
        return tiny_model("llama", vocab_size=len(tokenizer)).to(dtype), tokenizer

    monkeypatch.setattr(gguf, "read_gguf", read_gguf)
    return read


def test_second_load_reads_the_cache(tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is dequantised once for each dtype, and again when it changes."""
    read = fake_reader(monkeypatch, smollm2.tokenizer)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    for dtype in ("float32", "float32", "bfloat16", "float32"):
        load(str(file), device="cpu", dtype=dtype, cache_dir=tmp_path / "cache")
    assert len(read) == 2
    file.write_bytes(b"GGUF22")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert len(read) == 3


def test_copies_of_a_file_share_the_cache(tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content names the entry: every clone of the project has a copy of the default model."""
    read = fake_reader(monkeypatch, smollm2.tokenizer)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(b"GGUF1")
        load(str(tmp_path / folder / "model.gguf"), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert len(read) == 1


def waiting(change: Callable[[], object]) -> Callable[[Path], AbstractContextManager[None]]:
    """A lock that makes a change when it is taken, as if another process had held it meanwhile."""

    @contextmanager
    def lock(path: Path) -> Iterator[None]:
        change()
        yield

    return lock


def test_a_file_that_is_replaced_while_the_cache_is_locked(
    tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cached weights belong to the new file, not to the old one."""
    read, options = fake_reader(monkeypatch, smollm2.tokenizer), {"device": "cpu", "dtype": "float32"}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "FileLock", waiting(lambda: file.write_bytes(b"GGUF22")))
        load(str(file), cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]
    for content, count in ((b"GGUF22", 1), (b"GGUF1", 2)):
        file.write_bytes(content)
        load(str(file), cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]
        assert len(read) == count


def test_a_directory_that_is_replaced_while_the_cache_is_locked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights by neuron are named by their source files. Weights to be rounded are already open, so loading fails."""
    file, cache = directory / "model.safetensors", directory.parent / "cache"
    weights = load_file(file)
    change = waiting(lambda: save_file({name: 2 * each for name, each in weights.items()}, file, {"format": "pt"}))
    for lock in (change, mapped.FileLock):
        monkeypatch.setattr(mapped, "FileLock", lock)
        mapped.mapped_model(directory, torch.float32, cache / "by-neuron", "tiny")
    monkeypatch.setattr(quantised, "FileLock", change)
    with pytest.raises(LoadError, match="was changed while it was read"):
        load(str(directory), device="cpu", quantize="int4", cache_dir=cache)

    assert len([place for place in (cache / "by-neuron").iterdir() if place.is_dir()]) == 1
    assert not list(cache.glob("quantised/*"))


def test_half_written_cache_is_never_used(tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it writes leaves no entry that looks complete."""
    read = fake_reader(monkeypatch, smollm2.tokenizer)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    with monkeypatch.context() as killed:
        killed.setattr(smollm2.tokenizer, "save_pretrained", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert len(read) == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def altered(value: int) -> Callable[[Path], None]:
    """A change that overwrites some numbers and keeps the file's length."""

    def write(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[:-200] + bytes([value] * 100) + content[-100:])

    return write


# 0xff bytes are NaN in float16, bfloat16 and float32.
DAMAGE = {"cut": cut, "finite": altered(0x21), "not finite": altered(0xFF), "lost": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_made_again(
    damage: str, tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged cache costs one slow start and a warning."""
    read = fake_reader(monkeypatch, smollm2.tokenizer)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    DAMAGE[damage](next((tmp_path / "cache").rglob("model.safetensors")))
    for _ in range(2):
        load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert len(read) == 2
    assert caplog.text.count("making it again") == 1


def test_unwritable_cache_is_a_warning(
    tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a place for a cache there is a warning, not an error."""
    fake_reader(monkeypatch, smollm2.tokenizer)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    (tmp_path / "cache").write_text("a file where the directory should be")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert "no cache" in caplog.text


def test_full_disk_is_a_warning(
    tmp_path: Path, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights in memory are served, the file is read once, and no partial entry stays."""
    read = fake_reader(monkeypatch, smollm2.tokenizer)
    monkeypatch.setattr(smollm2.tokenizer, "save_pretrained", lambda _: (_ for _ in ()).throw(RuntimeError("no space")))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert len(read) == 1
    assert "not cached (no space)" in caplog.text
    assert [path.name for path in (tmp_path / "cache/dequantised").iterdir() if path.is_dir()] == []


def test_not_a_model_directory(tmp_path: Path) -> None:
    """A directory without a configuration is refused."""
    with pytest.raises(LoadError, match=r"is not a model directory: it has no config\.json"):
        load(str(tmp_path), device="cpu")


def test_unsupported_type_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    """The configuration is enough: here there are no weights."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_local_experts": 8}))
    with pytest.raises(UnsupportedModel, match=r"'mixtral' \(a mixture of experts\) is not supported"):
        load(str(tmp_path), device="cpu")


def test_directory_without_weights(directory: Path) -> None:
    """One line says which file is missing."""
    (directory / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model\.safetensors") as failure:
        load(str(directory), device="cpu")

    assert "\n" not in str(failure.value)


def test_a_directory_that_changes_while_it_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it changed, not that it is damaged."""

    def changing(folder: Path, source: str, dtype: torch.dtype) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        load_file(folder / "model.safetensors")

    monkeypatch.setattr(folder_reader, "from_pretrained", changing)
    with pytest.raises(LoadError, match="was changed while it was read; start again once it is written"):
        load(str(directory), device="cpu", dtype="float32")


def test_broken_configuration(tmp_path: Path) -> None:
    """The error for invalid JSON is one line."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json cannot be read"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/model", "missing.gguf", "~/nowhere"])
def test_paths_that_do_not_exist(source: str) -> None:
    """A name that looks like a path is not looked up on a hub."""
    with pytest.raises(LoadError, match="does not exist"):
        load(source, device="cpu")


def test_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    """Any other file is refused."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LoadError, match=r"neither a model directory nor a \.gguf file"):
        load(str(tmp_path / "notes.txt"), device="cpu")


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    """The name alone does not make a GGUF file."""
    (tmp_path / "fake.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(LoadError, match="is not a GGUF file, despite its name"):
        load(str(tmp_path / "fake.gguf"), device="cpu", cache_dir=tmp_path)


def test_hub_id_without_a_network() -> None:
    """A hub id is looked up on the hub; offline that fails with one line."""
    with pytest.raises(LoadError, match=r"'no-such-owner/no-such-model' is not in the hub's cache"):
        load("no-such-owner/no-such-model", device="cpu")


@pytest.mark.parametrize("name", ["llama3", "llama3:8b"])
def test_another_programs_name_of_a_model(name: str) -> None:
    """The error shows what a hub's name looks like, with its owner."""
    with pytest.raises(LoadError, match=rf"'{name}' .*; a hub's name is OWNER/NAME, such as \S+:Q4_K_M$"):
        load(name, device="cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "gpu0"}, "unknown device"),
        ({"device": "cuda:99"}, "is not there"),
        ({"dtype": "fp8"}, "unknown dtype"),
    ],
)
def test_impossible_placement(options: dict[str, str], text: str) -> None:
    """Device and dtype are checked before anything is read."""
    with pytest.raises(LoadError, match=text):
        load(**options)


@pytest.mark.parametrize(("kind", "share", "tolerance"), [("int8", 0.4, 0.1), ("int4", 0.32, 1.2)])
def test_quantised_weights_take_fewer_bytes(directory: Path, kind: str, share: float, tolerance: float) -> None:
    """Parameters are counted as numbers, and the identity stays, so that measurements of the plain model are found."""
    cache_dir = directory.parent / "cache"
    plain = load(str(directory), dtype="float32", device="cpu")
    rounded = load(str(directory), device="cpu", quantize=kind, cache_dir=cache_dir)
    before, after = Accounting.of(plain.model), Accounting.of(rounded.model)
    prompt, sampling = list(range(3, 30)), Sampling(temperature=0, max_tokens=5, ignore_eos=True)
    exact, near = (Engine(c.model).score(prompt, [7, 8, 9], Pruning()) for c in (plain, rounded))

    assert after.total == before.total
    assert after.weight_bytes < share * before.weight_bytes
    assert identity(rounded.model) == identity(plain.model)
    torch.testing.assert_close(near, exact, atol=tolerance, rtol=tolerance)
    for sparsity in (0.0, 0.5):
        assert len(list(Engine(rounded.model).generate(prompt, sampling, Pruning(sparsity)))) == 5


def codes(checkpoint: Checkpoint) -> list[Tensor]:
    return [tensor for matrix in matrices(checkpoint.model) for tensor in (*matrix.planes, *matrix.shared)]


@pytest.mark.parametrize("damage", [*DAMAGE.values(), None], ids=[*DAMAGE, "none"])
def test_quantised_once(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object] | None,
) -> None:
    """The second start reads the codes of the first. Damaged codes are made again."""
    options = {"device": "cpu", "quantize": "int4", "cache_dir": directory.parent / "cache"}
    first = load(str(directory), **options)  # type: ignore[arg-type]
    (file,) = (directory.parent / "cache" / "quantised").glob("tiny-llama-int4-*/codes.safetensors")
    if damage is None:
        monkeypatch.setattr(Form, "rounded", None)
    else:
        damage(file)
    second = load(str(directory), **options)  # type: ignore[arg-type]

    assert all(map(torch.equal, codes(first), codes(second)))
    assert caplog.text.count("making it again") == (damage is not None)
    assert file.is_file()


def test_pickled_weights_that_are_replaced_are_rounded_again(directory: Path) -> None:
    """The source files name the cache entry, in any format."""
    file, options = directory / "model.safetensors", {"device": "cpu", "quantize": "int4"}
    weights = load_file(file)
    file.unlink()
    for cache in ("one", "two"):
        torch.save(weights, directory / "pytorch_model.bin")
        found = load(str(directory), cache_dir=directory.parent / cache, **options)  # type: ignore[arg-type]
        weights["model.layers.0.mlp.up_proj.weight"] *= 2
    again = load(str(directory), cache_dir=directory.parent / "one", **options)  # type: ignore[arg-type]

    assert all(map(torch.equal, codes(again), codes(found)))


@pytest.mark.parametrize("free", [0, None])
def test_quantised_without_a_cache(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int | None
) -> None:
    """With a full disk or an unwritable place, there is one warning, and the model is served."""
    cache_dir = directory.parent / "cache"
    expected = codes(load(str(directory), device="cpu", quantize="int4", cache_dir=directory.parent / "other"))
    if free is None:
        cache_dir.write_text("a file")
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    found = load(str(directory), device="cpu", quantize="int4", cache_dir=cache_dir)

    assert all(map(torch.equal, codes(found), expected))
    assert caplog.text.count("every start rounds its weights again") == 1
    assert not list(directory.parent.glob("cache/quantised/*/codes.safetensors"))


def test_the_older_spelling_of_int8(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It means the same, and the log names the new one."""
    cache_dir = directory.parent / "cache"
    older = load(str(directory), device="cpu", dtype="int8", cache_dir=cache_dir)

    assert all(
        map(torch.equal, codes(older), codes(load(str(directory), device="cpu", quantize="int8", cache_dir=cache_dir)))
    )
    assert caplog.text.count("dtype int8 is an older spelling of --quantize int8") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu", "ff_offload": True}, "quantize cannot be combined with ff-offload"),
        ({"device": "meta"}, "quantize int4 runs on a CPU only, not on meta"),
        ({"dtype": "int8"}, "--dtype int8 and --quantize int4 exclude each other; leave --dtype out"),
        ({"quantize": "int3"}, "quantize cannot be 'int3'; use int8 or int4"),
        ({"source": "SmolLM2-135M-Instruct"}, "is a GGUF file, whose own codes are used; leave --quantize out"),
    ],
)
def test_what_cannot_be_quantised(directory: Path, options: dict[str, Any], words: str) -> None:
    """It is refused before anything is loaded."""
    with pytest.raises(LoadError, match=words):
        load(**{"source": str(directory), "quantize": "int4", **options})


def test_a_family_without_a_common_block_cannot_be_quantised(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Its decode step reads plain numbers only."""
    tiny_model("falcon", vocab_size=len(smollm2.tokenizer)).save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"a 'falcon' model has no common block; leave --quantize out"):
        load(str(tmp_path), device="cpu", quantize="int8")


def test_tokenizer_survives_the_cache(smollm2: Checkpoint) -> None:
    """The tokenizer from the cache is the same as the one from the GGUF file."""
    fresh = AutoTokenizer.from_pretrained(embedded_file().parent, gguf_file=embedded_file().name)
    text = "Grüße aus Köln: 2 + 2 = 4 — ¿verdad? 日本語 🙂\n\tdef f(x): return x"

    assert smollm2.tokenizer(text).input_ids == fresh(text).input_ids
    assert smollm2.tokenizer.eos_token == fresh.eos_token
