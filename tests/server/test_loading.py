"""A server whose model files are incomplete, or change while it runs, as users and supervisors see it."""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from griffin.model import guard
from tests.griffin.model.checkpoint.files import change_config, change_weights, text_model, write_gguf
from tests.server import tiny_checkpoint
from tests.server.client import post
from tests.server.process import START_S, ServerProcess, running
from tests.server.scripted import wait_until


def lost(folder: Path) -> str:
    change_weights(folder, lambda weights: {name: w for name, w in weights.items() if "layers.1.mlp" not in name})
    return "lacks 3 of the model's weights: model.layers.1.mlp.down_proj.weight"


def quantised(folder: Path) -> str:
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return "quantised by bitsandbytes"


@pytest.mark.parametrize("fault", [lost, quantised])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_a_model_that_is_not_whole_is_not_served(fault: Callable[[Path], str], offload: str, tmp_path: Path) -> None:
    """The server prints one line, exits with code 1, and leaves no weights in the cache."""
    words = fault(tiny_checkpoint.write(tmp_path / "tiny"))
    cache = tmp_path / "cache"
    with running("--model", str(tmp_path / "tiny"), "--ff-offload", offload, "--cache-dir", str(cache)) as server:
        code = server.wait()

    assert code == 1
    assert [line for line in server.log.splitlines() if words in line]
    assert "Traceback" not in server.log
    assert "is ready" not in server.log
    assert not [path for path in cache.rglob("*") if path.is_dir() and any(path.glob("*.safetensors"))]


def test_a_gguf_file_that_is_not_whole_is_not_served(tmp_path: Path) -> None:
    """The second start fails in the same way."""
    model = text_model("llama", mlp_bias=False)
    file = write_gguf(tmp_path / "tiny.gguf", model, keep=lambda name: not name.startswith("blk.2."))
    for _ in range(2):
        with running("--model", str(file), "--cache-dir", str(tmp_path / "cache")) as server:
            assert server.wait() == 1
        assert "its key llama.block_count is 3, and the file has tensors of 2 blocks" in server.log
        assert "Traceback" not in server.log


@pytest.mark.skipif(not guard.available(), reason="griffin/_native was not built: no C compiler")
def test_a_mapped_file_that_is_cut_short_under_a_server(tmp_path: Path) -> None:
    """The request gets a 500, later ones a 503, /health says that only a restart helps; the process does not crash."""
    tiny_checkpoint.write(tmp_path / "tiny")
    arguments = ("--model", str(tmp_path / "tiny"), "--ff-offload", "cpu", "--cache-dir", str(tmp_path / "cache"))
    with running(*arguments, "--device", "cpu") as server:
        before = post(server.url, prompt="The sea", max_tokens=2, sparsity=0.5)
        (file,) = (tmp_path / "cache").rglob("feed_forward.safetensors")
        with file.open("r+b") as content:
            content.truncate(4096)
        failed = post(server.url, prompt="The sky", max_tokens=2, sparsity=0.5)
        wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        later = post(server.url, prompt="The sky", max_tokens=2)
        wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503, 60)
        code = server.terminate()
    assert before.status_code == 200
    assert (failed.status_code, failed.headers["x-should-retry"]) == (500, "false")
    assert (later.status_code, later.json()["error"]["code"]) == (503, "engine_failed")
    assert "was changed while it was served; start the server again" in server.log
    assert code == 0
    with running(*arguments, "--device", "cpu") as again:
        assert post(again.url, prompt="The sea", max_tokens=2, sparsity=0.5, temperature=0).status_code == 200


def test_a_start_is_a_few_lines(tmp_path: Path) -> None:
    """Probes add no lines, and without a terminal there is no progress bar for converting or loading."""
    folder = tiny_checkpoint.write(tmp_path / "tiny")
    file = write_gguf(tmp_path / "tiny.gguf", text_model("llama", mlp_bias=False))
    for model in (str(folder), str(file)):
        port = free_port()
        with running("--model", model, "--port", str(port), "--cache-dir", str(tmp_path / "cache")) as server:
            statuses = probed_until_ready(f"http://127.0.0.1:{port}", server)
            assert httpx.get(f"{server.url}/nowhere").status_code == 404
            assert server.terminate() == 0
        lines = server.log.splitlines()

        assert 503 in statuses
        assert not [line for line in lines if "%|" in line or "\r" in line]
        assert [line for line in lines if "request " in line and "path=/nowhere" not in line] == []
        assert {line.split(" ")[0] for line in lines if line} == {"griffin:", "curl"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def probed_until_ready(url: str, server: ServerProcess) -> list[int]:
    """Poll /ready, /health, /metrics and /version until the server is ready; return the statuses of /ready."""
    statuses: list[int] = []

    def ready() -> bool:
        assert server.process.poll() is None, server.log
        with suppress(httpx.ConnectError):
            statuses.append(httpx.get(f"{url}/ready").status_code)
            for path in ("/health", "/metrics", "/version"):
                assert httpx.get(f"{url}{path}").status_code == 200
        return 200 in statuses

    wait_until(ready, START_S)
    return statuses
