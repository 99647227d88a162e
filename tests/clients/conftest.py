"""One server for all clients, in fp32, so that its scores can be compared with those of the model in this process."""

import gc
import socket
import warnings
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from tests.models import coder
from tests.server import tiny_checkpoint
from tests.server.process import running


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """The server's address."""
    with running("--dtype", "float32", "--prompt-pass-tokens", "0") as process:
        yield process.url


@pytest.fixture(scope="module")
def coder_url() -> Iterator[str]:
    """The address of a server with a model that was trained to call functions."""
    with running("--model", str(coder("1.5b"))) as process:
        yield process.url


@pytest.fixture(scope="module")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with random weights, whose answers only a grammar makes meaningful."""
    model = tiny_checkpoint.write(tmp_path_factory.mktemp("model") / "tiny", context=2048)
    with running("--model", str(model), "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        yield server.url


@pytest.fixture(autouse=True)
def nothing_but_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients may load price lists, tokenizers or data sets, or report their use. A test that tries this fails."""
    attempts: list[Any] = []
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not ip_address(address[0]).is_loopback:
            attempts.append(address)
            raise ConnectionRefusedError(f"{address} is not this machine")
        connect(self, address)

    look_up = socket.getaddrinfo

    def look_up_here(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "localhost", "127.0.0.1", "::1"):
            attempts.append(name)
            raise socket.gaierror(f"{name} is not this machine")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    yield
    assert attempts == []


@pytest.fixture(autouse=True)
def sockets_left_open() -> Iterator[None]:
    """Some clients leave sockets to the garbage collector, which could warn in any test; it runs here instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
