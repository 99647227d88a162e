"""Cached prompt prefixes in files outlive the server: over HTTP, with real servers."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.server import tiny_checkpoint
from tests.server.client import metric, post
from tests.server.process import ServerProcess, running
from tests.server.scripted import wait_until

CHAT = "/v1/chat/completions"
WORDS = "the cat sat on the mat and the dog sat on the cat and the mat " * 2
# Engines warm up with a prompt of one chunk.
CHUNK, WARM_UP = 8, 1
FIRST = [{"role": "user", "content": WORDS}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("models") / "tiny")


def settings(checkpoint: Path, folder: Path | None) -> list[str]:
    kept = [] if folder is None else ["--prefix-cache-dir", str(folder)]
    return ["--model", str(checkpoint), "--prefill-chunk", str(CHUNK), "--dtype", "float32", *kept]


def ask(server: ServerProcess, messages: list[dict[str, str]]) -> Any:
    return post(server.url, CHAT, messages=messages, max_tokens=8, temperature=0).raise_for_status().json()


def next_turn(answer: Any) -> list[dict[str, str]]:
    said = answer["choices"][0]["message"]["content"]
    return [*FIRST, {"role": "assistant", "content": said}, {"role": "user", "content": "and the dog?"}]


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_a_chat_goes_on_after_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    """The next turn reads only what is new, and its answer is the same as without a restart."""
    with running(*settings(checkpoint, None)) as server:
        plain = [first := ask(server, FIRST), ask(server, next_turn(first))]
    with running(*settings(checkpoint, tmp_path)) as server:
        first = ask(server, FIRST)
        # Stop at once: chunks that still wait are written during the shutdown.
        assert server.terminate() == 0
    with running(*settings(checkpoint, tmp_path)) as server:
        second = ask(server, next_turn(first))
        hits = metric(server.url, "griffin_prefix_cache_file_hits_total")
        again = ask(server, next_turn(first))
        later_hits = metric(server.url, "griffin_prefix_cache_file_hits_total")
        log = server.log

    assert [first["choices"], second["choices"]] == [answer["choices"] for answer in plain]
    assert again["choices"] == second["choices"]
    assert cached(first) == 0
    assert cached(second) == cached(plain[1]) > 32
    assert hits == later_hits == cached(second)
    chunks = first["usage"]["prompt_tokens"] // CHUNK + WARM_UP
    assert f"{tmp_path}: {chunks} chunks of prompts of this model" in log
    assert WORDS[:20] not in log


def test_another_model_and_a_damaged_file_are_not_taken(checkpoint: Path, tmp_path: Path) -> None:
    """Other weights find no prefix. A damaged file is logged, removed and written anew."""
    with running(*settings(checkpoint, tmp_path)) as server:
        first = ask(server, FIRST)
        server.terminate()
    before = files(tmp_path)
    for path in before:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with running(*settings(checkpoint, tmp_path)) as server:
        again = ask(server, FIRST)
        server.terminate()
        log = server.log
    assert (cached(again), again["choices"]) == (0, first["choices"])
    assert log.count("is damaged") == 1
    assert files(tmp_path) == before

    model = LlamaForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        # A change of attention alone: a fingerprint of the feed-forward weights would miss it.
        model.model.layers[1].self_attn.o_proj.weight *= 2
    model.save_pretrained(checkpoint)
    with running(*settings(checkpoint, tmp_path)) as server:
        assert cached(ask(server, FIRST)) == 0
        server.terminate()
    assert len(files(tmp_path)) == 2 * len(before)


def test_a_full_disk_is_logged_and_the_server_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file sizes makes each write fail, as a full disk does."""
    with running(*settings(checkpoint, tmp_path)) as server:
        assert server.url
        wait_until(lambda: len(files(tmp_path)) == WARM_UP)
        before = files(tmp_path)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, 100))
        first = ask(server, FIRST)
        wait_until(lambda: "chunks of prompts are not kept" in server.log)
        second = ask(server, FIRST)
        assert server.terminate() == 0

    assert first["choices"] == second["choices"]
    assert cached(second) > 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == before


def test_two_servers_share_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """A server finds the prefixes that another running server has read."""
    with running(*settings(checkpoint, tmp_path)) as one, running(*settings(checkpoint, tmp_path)) as other:
        first = ask(one, FIRST)
        chunks = first["usage"]["prompt_tokens"] // CHUNK + WARM_UP
        wait_until(lambda: len(files(tmp_path)) == chunks)
        second = ask(other, FIRST)

    assert first["choices"] == second["choices"]
    assert cached(second) == (first["usage"]["prompt_tokens"] - 1) // CHUNK * CHUNK


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prefix-cache-dir", "/dev/null/x"], "prefixes cannot be kept in /dev/null/x"),
        (["--prefix-cache-dir", "x", "--prefix-cache-mb", "0"], "--prefix-cache-dir: needs memory too"),
        (["--prefix-cache-disk-gb", "0"], "--prefix-cache-disk-gb"),
    ],
)
def test_invalid_settings(flags: list[str], words: str, checkpoint: Path) -> None:
    """The start ends with one line that names the flag or the folder."""
    with running("--model", str(checkpoint), *flags) as server:
        assert server.wait() in (1, 2)

    assert words in server.log
