"""All spellings of paths and names that come from a shell, a hub or a container."""

from pathlib import Path

import pytest

from griffin.errors import LoadError
from griffin.model.checkpoint.source import EMBEDDED_MODEL, embedded_file, locate
from tests.griffin.model.checkpoint.files import text_model, write_gguf
from tests.tiny import tiny_model

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a configuration and weights."""
    tiny_model("llama").save_pretrained(tmp_path / "my-model")
    return tmp_path / "my-model"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A repository in a hub's cache: files are links to blobs."""
    repository = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = repository / "snapshots" / REVISION
    (repository / "blobs").mkdir(parents=True)
    tiny_model("llama").save_pretrained(repository / "blobs" / "whole")
    write_gguf(repository / "blobs" / ("f" * 64), text_model("llama", mlp_bias=False))
    snapshot.mkdir(parents=True)
    for file in (repository / "blobs" / "whole").iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot / "tiny.gguf").symlink_to("../../blobs/" + "f" * 64)
    return repository


def test_spellings_of_one_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them mean the directory, and its name is the model's name."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    spellings = [
        str(folder), f"{folder}/", f" {folder}\n", f'"{folder}"', f"'{folder}'", f"file://{folder}", f"file:{folder}",
        f"file://localhost{folder}", "my-model",
        "./my-model", "./my-model/", "~/my-model", "my-model/../my-model",
    ]  # fmt: skip

    assert {(found.name, found.path and found.path.resolve()) for found in map(locate, spellings)} == {
        ("my-model", folder)
    }


@pytest.mark.parametrize("spelling", [".", "./", "../my-model/."])
def test_a_directory_without_a_name_of_its_own(spelling: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has the name of the directory that the spelling means."""
    monkeypatch.chdir(folder)

    assert locate(spelling).name == "my-model"


def test_a_link_has_its_own_name(folder: Path, hub: Path, tmp_path: Path) -> None:
    """A link names the model, whatever its target is."""
    for target in (folder, hub / "snapshots" / REVISION):
        link = tmp_path / "chosen"
        link.symlink_to(target)
        assert locate(str(link)).name == "chosen"
        link.unlink()


def test_a_snapshot_is_called_as_on_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never by the 40 digits of its revision. The repository's folder means its main revision."""
    snapshot = hub / "snapshots" / REVISION
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(REVISION)
    monkeypatch.chdir(snapshot)

    assert {locate(str(place)).name for place in (snapshot, f"{snapshot}/", hub, ".")} == {"some-org/some-model"}
    assert locate(str(hub)).path == snapshot


def test_a_repository_with_several_snapshots(hub: Path) -> None:
    """It is not known which one is meant."""
    (hub / "snapshots" / ("a" * 40)).mkdir()
    with pytest.raises(LoadError, match="has 2 snapshots"):
        locate(str(hub))


def test_a_gguf_file_by_any_name(hub: Path, tmp_path: Path) -> None:
    """A link to a blob, a blob, upper case, no ending: the content says what it is."""
    link = hub / "snapshots" / REVISION / "tiny.gguf"
    found = locate(str(link))
    assert (found.name, found.path, found.is_gguf) == ("tiny", link, True)
    for name in ("UPPER.GGUF", "without-ending", "v1.5-q4"):
        (tmp_path / name).write_bytes(link.read_bytes())
        assert locate(str(tmp_path / name)).is_gguf


def test_a_directory_with_one_gguf_file(tmp_path: Path) -> None:
    """The directory means that file. Vision parts do not count, and a split model means its first part."""
    model = text_model("llama", mlp_bias=False)
    write_gguf(tmp_path / "mmproj-f16.gguf", model)
    write_gguf(tmp_path / "m-00001-of-00002.gguf", model)
    write_gguf(tmp_path / "m-00002-of-00002.gguf", model)
    assert locate(str(tmp_path)).path == tmp_path / "m-00001-of-00002.gguf"
    write_gguf(tmp_path / "other.gguf", model)
    with pytest.raises(LoadError, match=r"holds 2 GGUF models; name one: \S+/m-00001-of-00002.gguf, \S+/other.gguf$"):
        locate(str(tmp_path))


def test_a_directory_with_a_vision_part_alone(tmp_path: Path) -> None:
    """That is no language model."""
    write_gguf(tmp_path / "mmproj-f16.gguf", text_model("llama", mlp_bias=False))
    with pytest.raises(LoadError, match=r"a folder without a model in its GGUF files .*not \S+/mmproj-f16.gguf$"):
        locate(str(tmp_path))


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({2: b"GGUF", 3: b"GGUF"}, "parts of a model without the first one, m-00001-of-00003.gguf; download all parts"),
        ({1: b"", 2: b"GGUF", 3: b"GGUF"}, "m-00001-of-00003.gguf' is empty; download it again"),
        ({1: b"version https://git-lfs", 2: b"GGUF"}, "m-00001-of-00003.gguf' is a pointer of git-lfs"),
        ({1: b"<html>"}, "m-00001-of-00003.gguf' is not a GGUF file, despite its name"),
    ],
)
def test_a_directory_with_parts_of_a_model(contents: dict[int, bytes], words: str, tmp_path: Path) -> None:
    """The error names the missing or damaged first part, and offers no choice."""
    for number, content in contents.items():
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(content)
    with pytest.raises(LoadError, match=words):
        locate(str(tmp_path))


@pytest.mark.parametrize("spelling", [EMBEDDED_MODEL, EMBEDDED_MODEL.upper(), f" {EMBEDDED_MODEL} "])
def test_the_embedded_default(spelling: str) -> None:
    """Upper and lower case do not matter."""
    found = locate(spelling)

    assert (found.name, found.path) == (EMBEDDED_MODEL, embedded_file())


@pytest.mark.parametrize(
    ("spelling", "hub_id"),
    [
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("hf.co/org/name", "org/name"),
        ("hf://org/name", "org/name"),
        ("https://www.huggingface.co/org/name", "org/name"),
        ("HF.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("https://huggingface.co/org/name?library=x#files", "org/name"),
    ],
)
def test_hub_ids(spelling: str, hub_id: str) -> None:
    """A hub id, or the address of its page."""
    found = locate(spelling)

    assert (found.name, found.hub_id, found.path) == (hub_id, hub_id, None)


@pytest.mark.parametrize(
    ("spelling", "name", "file"),
    [
        ("org/name:Q4_K_M", "org/name:Q4_K_M", "Q4_K_M"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M", "Q4_K_M"),
        ("org/name/model-q4.gguf", "model-q4", "model-q4.gguf"),
        ("hf.co/org/name/BF16/model.gguf", "model", "BF16/model.gguf"),
        ("https://huggingface.co/org/name/resolve/main/model.gguf?download=true", "model", "model.gguf"),
        ("https://huggingface.co/org/name/blob/main/BF16/model.gguf", "model", "BF16/model.gguf"),
    ],
)
def test_files_of_a_hub(spelling: str, name: str, file: str) -> None:
    """By a quantisation after a colon, by a file's name with its folder, or by the address of its page."""
    found = locate(spelling)

    assert (found.name, found.hub_id, found.hub_file, found.path) == (name, "org/name", file, None)


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ('""', "is empty"),
        ("$MODELS/llama", "a variable in it was not replaced"),
        ("C:\\models\\llama", "write the path with / instead of"),
        ("org/name:Q4 K", "name a GGUF file's quantisation"),
        ("name/model-q4.gguf", "does not exist"),
        ("org/name@main", "names a revision"),
        ("a/b/c", "it is not a hub id"),
        ("https://example.com/model", "is an unknown address"),
        ("s3://bucket/model", "is an unknown address"),
        ("ollama://llama3", "is an unknown address"),
        ("llama3:8b", "another program's name for a model"),
        ("models--org--name", "as a hub id it is org/name"),
        ("/dev/zero", "is not a regular file"),
        ("my model", "it is not a hub id"),
        ("file:///no/such/model", "does not exist"),
        ("/no/such/model", "does not exist"),
        ("bad\0name", "cannot be read"),
        ("~no-such-user/model", "cannot be read"),
    ],
)
def test_what_cannot_be_meant(spelling: str, words: str) -> None:
    """One line says what to do."""
    with pytest.raises(LoadError, match=words.replace("(", r"\(")) as failure:
        locate(spelling)

    assert "\n" not in str(failure.value)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """A container may have the link without its target."""
    (tmp_path / "link").symlink_to("/not/mounted/model")
    with pytest.raises(LoadError, match="is a link to /not/mounted/model, which is not here"):
        locate(str(tmp_path / "link"))
