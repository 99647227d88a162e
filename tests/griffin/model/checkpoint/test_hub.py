"""Models by their hub names: which files are chosen, what is downloaded, and what needs no network."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from huggingface_hub import scan_cache_dir

from griffin.errors import LoadError
from griffin.model.checkpoint.hub_files import chosen
from griffin.model.loading import load
from tests.griffin.model.checkpoint.files import text_model, write_directory, write_gguf
from tests.griffin.model.checkpoint.hub_server import Repositories, hub
from tests.server.process import running
from tests.server.scripted import wait_until

GGUFS = ["README.md", "config.json", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "m.imatrix.gguf"]
SPLIT = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m.IQ4_XS.gguf"]
CHECKPOINT = ["config.json", "model.safetensors", "tokenizer.json"]

# Reads lines of environment variables and spellings. It prints the name and path of each place, or the error, as one
# line. The library of the hub reads its settings when it is imported, so each line is answered by a fork that imports
# it anew; everything else is imported once.
FIND = """
import json, os, sys
import griffin
from griffin.errors import LoadError
from griffin.model.checkpoint.source import locate

def find(spelling):
    from griffin.model.checkpoint.hub import brought, with_weights
    try:
        found = brought(locate(spelling))
        return [found.name, str(found.path if found.is_gguf else with_weights(found))]
    except LoadError as error:
        return [str(error)]

for line in sys.stdin:
    environment, spellings = json.loads(line)
    if os.fork() == 0:
        os.environ.update(environment)
        for name in list(sys.modules):
            if name.split(".")[0] == "huggingface_hub" or name == "griffin.model.checkpoint.hub":
                del sys.modules[name]
        print(json.dumps([find(spelling) for spelling in spellings]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


class Finder:
    """Finds models by their spellings, each time in a process that has just read its settings."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, endpoint: str, home: Path, *spellings: str, **environment: str) -> list[list[str]]:
        """Name and path of each, or its error."""
        assert self._process.stdin
        assert self._process.stdout
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
        print(json.dumps([settings, spellings]), file=self._process.stdin, flush=True)
        answer: list[list[str]] = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def found() -> Iterator[Finder]:
    with subprocess.Popen([sys.executable, "-c", FIND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        yield Finder(it)


@pytest.mark.parametrize(
    ("names", "wanted", "files"),
    [
        (GGUFS, "Q4_K_M", ["m-Q4_K_M.gguf"]),
        (GGUFS, "q8_0", ["m-Q8_0.gguf"]),
        (GGUFS, "m-q8_0.GGUF", ["m-Q8_0.gguf"]),
        (SPLIT, "bf16", SPLIT[:2]),
        (SPLIT, "IQ4_XS", SPLIT[2:]),
        (SPLIT, SPLIT[0], SPLIT[:2]),
        (GGUFS[:3], None, ["m-Q4_K_M.gguf"]),
        (SPLIT[:2], None, SPLIT[:2]),
        ([*CHECKPOINT, *GGUFS], None, []),
        ([*CHECKPOINT, *GGUFS], "Q8_0", ["m-Q8_0.gguf"]),
        (["a-Q4_K_M.gguf", "a-Q4_K.gguf", "a-Q4_K_S.gguf"], "Q4_K", ["a-Q4_K.gguf"]),
    ],
)
def test_files_that_a_name_means(names: Sequence[str], wanted: str | None, files: list[str]) -> None:
    """A quantisation or file name in any case, all parts of a split model; without one, a checkpoint."""
    assert chosen(names, "o/r", wanted) == files


@pytest.mark.parametrize(
    ("names", "wanted", "words"),
    [
        (GGUFS, None, "'o/r' has 2 GGUF models; add a colon and one of Q4_K_M, Q8_0"),
        (GGUFS, "Q2_K", "no GGUF file there is called Q2_K; name one of Q4_K_M, Q8_0"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "2 GGUF files are called Q8_0; name one of a-Q8_0.gguf, b-Q8_0.gguf"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q4_0", "is called Q4_0; name one of a-Q8_0.gguf, b-Q8_0.gguf"),
        (
            ["README.md", "model.onnx"],
            None,
            "no GGUF file and no config.json with safetensors; it has README.md, model",
        ),
        ([], None, "it has no files"),
        (CHECKPOINT, "Q4_0", "has no GGUF file; it has config.json, model.safetensors"),
        (["mmproj-F16.gguf"], None, "has no GGUF file"),
        (GGUFS, "mmproj-F16.gguf", "is the vision or audio part of a model, not a language model"),
        (GGUFS, "other.gguf", "no such file in the repository; its GGUF files are m-Q4_K_M.gguf, m-Q8_0.gguf"),
        (CHECKPOINT, "other.gguf", "it has no GGUF file, but config.json"),
        (SPLIT, SPLIT[1], f"is not the first part of the model; name {SPLIT[0]}"),
        (SPLIT[:1], "BF16", f"is one of 00002 parts, and {SPLIT[1]} is not there"),
    ],
)
def test_no_file_and_several_are_refused_with_the_available_ones(
    names: Sequence[str], wanted: str | None, words: str
) -> None:
    """One line says what to name instead."""
    with pytest.raises(LoadError) as failure:
        chosen(names, "o/r", wanted)

    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    """A GGUF repository with two quantisations, one of them in parts, and a checkpoint."""
    place = tmp_path_factory.mktemp("files")
    model = write_gguf(place / "tiny.gguf", text_model("llama", mlp_bias=False)).read_bytes()
    folder = write_directory(place / "checkpoint", load(str(place / "tiny.gguf"), device="cpu").tokenizer)
    checkpoint = {file.name: file.read_bytes() for file in folder.iterdir()}
    parts = {f"Q8_0/tiny-Q8_0-0000{number}-of-00002.gguf": model for number in (1, 2)}
    return {
        "org/tiny-GGUF": {"tiny-Q4_K_M.gguf": model, "mmproj-F16.gguf": b"GGUF", **parts},
        "org/tiny": checkpoint,
        "org/none": {"README.md": b"words"},
    }


def test_each_spelling_is_downloaded_once(found: Finder, repositories: Repositories, tmp_path: Path) -> None:
    """Only the chosen files. The second time nothing is asked for; without a network the result is the same."""
    spellings = ["org/tiny-GGUF:q4_k_m", "org/tiny-GGUF/tiny-Q4_K_M.gguf", "hf.co/org/tiny-GGUF:Q8_0", "org/tiny",
                 "https://huggingface.co/org/tiny-GGUF/blob/main/tiny-Q4_K_M.gguf"]  # fmt: skip
    with hub(repositories) as server:
        first = found(server.url, tmp_path, *spellings)
        asked = len(server.asked)
        second = found(server.url, tmp_path, *spellings)
        assert len(server.asked) == asked
    third = found(server.url, tmp_path, *spellings, HF_HUB_OFFLINE="1")

    assert first == second == third
    assert [name for name, _ in first] == ["org/tiny-GGUF:q4_k_m", "tiny-Q4_K_M", "org/tiny-GGUF:Q8_0", "org/tiny",
                                           "tiny-Q4_K_M"]  # fmt: skip
    assert [Path(path).name for _, path in first[:3]] == [
        "tiny-Q4_K_M.gguf", "tiny-Q4_K_M.gguf", "tiny-Q8_0-00001-of-00002.gguf",
    ]  # fmt: skip
    assert Path(first[2][1]).with_name("tiny-Q8_0-00002-of-00002.gguf").is_file()
    assert (Path(first[3][1]) / "model.safetensors").is_file()
    assert not any("mmproj" in path for path in server.asked if "/resolve/" in path)


def test_the_error_says_why_a_model_is_not_available(found: Finder, repositories: Repositories, tmp_path: Path) -> None:
    """Unknown and gated repositories, unknown quantisations, and no network; each in one line."""
    with hub(repositories) as server:
        errors = found(server.url, tmp_path, "org/no-such", "gated/model", "org/tiny-GGUF", "org/none", "a/b/c.gguf")
    offline = found(server.url, tmp_path, "org/tiny-GGUF:Q4_K_M", HF_HUB_OFFLINE="1")
    before = time.monotonic()
    refused = found(server.url, tmp_path, "org/tiny")

    assert time.monotonic() - before < 30
    assert "is neither here nor on the hub" in errors[0][0]
    assert "after its terms were accepted" in errors[1][0]
    assert "add a colon and one of Q4_K_M, Q8_0" in errors[2][0]
    assert "it has README.md" in errors[3][0]
    assert "is neither here nor on the hub" in errors[4][0]
    assert "HF_HUB_OFFLINE forbids to download it" in offline[0][0]
    assert f"{server.url} cannot be reached" in refused[0][0]


def test_one_gguf_file_in_the_cache_is_not_the_repository(
    found: Finder, repositories: Repositories, tmp_path: Path
) -> None:
    """The repository's name means that file only if the hub has no other, or cannot be reached."""
    gguf = repositories["org/tiny-GGUF"]["tiny-Q4_K_M.gguf"]
    others = {"org/both": repositories["org/tiny"], "org/two": {"t-Q8_0.gguf": gguf}, "org/one": {}}
    with hub({name: {"t-Q4_K_M.gguf": gguf, **files} for name, files in others.items()}) as server:
        named = [path for _, path in found(server.url, tmp_path, *(f"{name}:Q4_K_M" for name in others))]
        offline = found(server.url, tmp_path, *others, HF_HUB_OFFLINE="1")
        asked = len(server.asked)
        both, (two,), one = found(server.url, tmp_path, *others)
        downloads = [path for path in server.asked[asked:] if "/resolve/" in path]
    unreachable = found(server.url, tmp_path, *others)

    assert offline == [[name, path] for name, path in zip(others, named, strict=True)]
    assert (Path(both[1]) / "model.safetensors").is_file()
    assert "has 2 GGUF models; add a colon and one of Q4_K_M, Q8_0" in two
    assert one == ["org/one", named[2]]
    assert not any("gguf" in path for path in downloads)
    # The checkpoint in the cache is now what the name means.
    assert unreachable == [both, *offline[1:]]


def test_the_only_gguf_file_of_a_repository_is_asked_for_once(
    found: Finder, repositories: Repositories, tmp_path: Path
) -> None:
    """It was downloaded by the repository's name, or before by its own. hf's tools still read the cache."""
    gguf = repositories["org/tiny-GGUF"]["tiny-Q4_K_M.gguf"]
    with hub({name: {"t-Q4_K_M.gguf": gguf} for name in ("org/one", "org/first")}) as server:
        found(server.url, tmp_path, "org/first:Q4_K_M")
        first = found(server.url, tmp_path, "org/one", "org/first")
        asked = len(server.asked)
        second = found(server.url, tmp_path, "org/one", "org/first")
        assert len(server.asked) == asked
    cache = scan_cache_dir(tmp_path / "hub")

    assert first == second
    assert not cache.warnings
    assert sorted(repository.repo_id for repository in cache.repos) == ["org/first", "org/one"]


def test_a_checkpoint_without_a_tokenizer_is_completed(
    found: Finder, repositories: Repositories, tmp_path: Path
) -> None:
    """Other programs leave such a cache. Its weights are not downloaded again; without a hub it is used as it is."""
    with hub(repositories) as server:
        ((_, path),) = found(server.url, tmp_path, "org/tiny")
        for file in Path(path).iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                file.unlink()
        offline = found(server.url, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
        asked = len(server.asked)
        again = found(server.url, tmp_path, "org/tiny")
        downloads = [each for each in server.asked[asked:] if "/resolve/" in each]

    assert offline == again == [["org/tiny", path]]
    assert (Path(path) / "tokenizer.json").is_file()
    assert not any("safetensors" in each for each in downloads)


def test_a_hub_that_does_not_answer_is_given_up_soon(found: Finder, tmp_path: Path) -> None:
    """After at most three tries."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        ((error,),) = found(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "org/tiny")
        silent.setblocking(False)
        tries = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                tries += 1

    assert "cannot be reached" in error
    assert 1 <= tries <= 3


def test_a_server_starts_by_quantisation_and_again_without_a_network(
    repositories: Repositories, tmp_path: Path
) -> None:
    """The model has the name that was given. The second start does not connect to the hub."""
    settings = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "GRIFFIN_MODEL": "org/tiny-GGUF:Q4_K_M"}
    with hub(repositories) as server, running(**settings, HF_ENDPOINT=server.url) as process:
        first = httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with running(**settings, HF_ENDPOINT=endpoint) as process:
            second = httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"]
        with pytest.raises(BlockingIOError):
            silent.accept()

    assert first == second == "org/tiny-GGUF:Q4_K_M"
    wait_until(lambda: "from the hub's cache" in process.log)
