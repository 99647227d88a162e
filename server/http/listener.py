"""The listening sockets, and a limit on the connections accepted from them.

asyncio itself accepts without a limit. When file descriptors run out it tries again at once, forever, and logs each
attempt.
"""

import asyncio
import errno
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from server.http.connection import Connection

logger = logging.getLogger("griffin")

# Connections beyond the limit, for operations: a probe of /health must get an answer while other clients hold all
# connections, or the process is restarted without need. Other requests on these connections are told to try again.
RESERVE = 8
# Seconds that a reserve connection may take for its headers, so that a crowd cannot hold the reserve too.
RESERVE_HEADER_S = 2.0
# Connections that the operating system holds until they are accepted.
BACKLOG = 128
# Connections that are accepted before other tasks get their turn.
AT_ONCE = 64
# When file descriptors or memory run out: seconds until the next attempt, and seconds between log lines.
PAUSE_S, QUIET_S = 1.0, 1.0
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Descriptors for everything else: weights, caches, the log, libraries. With a small limit, at most half of it.
OTHER_FILES = 128

MakeProtocol = Callable[[Callable[[], bool], Callable[[], None], bool], asyncio.Protocol]


class Listener:
    """Accepts connections while fewer than ``max_connections`` are open. Others wait in the system's small backlog."""

    def __init__(self, sockets: Sequence[socket.socket], make: MakeProtocol, max_connections: int) -> None:
        """
        Args:
            sockets: bound and listening; the listener closes them.
            make: makes a protocol for a connection. Arguments: whether the connection is beyond the limit; a function
                to call at its end; whether the connection belongs to the reserve.
        """
        self.sockets = tuple(sockets)
        self._make, self._max = make, max_connections
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._accepts = self._closed = False
        self._logged_at = -QUIET_S
        self._starting: set[asyncio.Task[None]] = set()
        self._resume()

    @property
    def open(self) -> int:
        """Number of open connections, including the reserve."""
        return self._open

    def close(self) -> None:
        """Stop accepting. Open connections stay open."""
        self._closed = True
        self._pause()
        for listening in self.sockets:
            listening.close()

    async def wait_closed(self) -> None:
        """uvicorn calls this after it has waited for the connections itself."""

    def _resume(self) -> None:
        if self._accepts or self._closed:
            return
        self._accepts = True
        for listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _pause(self) -> None:
        if not self._accepts:
            return
        self._accepts = False
        for listening in self.sockets:
            self._loop.remove_reader(listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if self._open >= self._max + RESERVE:
                # Accepting resumes when a connection ends.
                self._pause()
                self._say(
                    f"{self._open} connections are open: {self._max} (--max-connections) and {RESERVE} in reserve; "
                    "new ones wait"
                )
                return
            try:
                client, _ = listening.accept()
            except OSError as error:
                # Otherwise the client has left already, or there is no connection.
                if error.errno in EXHAUSTED:
                    self._pause()
                    self._loop.call_later(PAUSE_S, self._resume)
                    self._say(f"no connection can be accepted: {error.strerror}; {self._open} are open")
                return
            self._open += 1
            task = self._loop.create_task(self._connect(client, self._open > self._max))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _connect(self, client: socket.socket, reserved: bool) -> None:
        ended = False

        def lost() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._open -= 1
                self._resume()

        def crowded() -> bool:
            return reserved and self._open > self._max

        try:
            client.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: self._make(crowded, lost, reserved), client)
        except OSError:
            # The client has left already.
            client.close()
            lost()

    def _say(self, message: str) -> None:
        """Log a warning, at most one a second."""
        if time.monotonic() - self._logged_at >= QUIET_S:
            self._logged_at = time.monotonic()
            logger.warning("%s", message)


def configuration(app: ASGIApp, port: int, **others: Any) -> uvicorn.Config:
    """uvicorn's configuration, for the server and for tests, so that tests run the same configuration."""
    return uvicorn.Config(
        app,
        port=port,
        # uvicorn's records go where all other records go.
        log_config=None,
        access_log=False,
        # Named, because uvicorn would use other implementations as soon as some package installs them.
        loop="asyncio",
        http="h11",
        ws="none",
        **others,
    )


class BoundedServer(uvicorn.Server):
    """uvicorn, with our listener and our connections."""

    def __init__(
        self, config: uvicorn.Config, hosts: Sequence[str], max_connections: int = 512, header_timeout: float = 10.0
    ) -> None:
        """
        Args:
            hosts: names or addresses to listen on, all at the configuration's port.
            header_timeout: seconds that a request's headers may take to arrive.
        """
        super().__init__(config)
        self._hosts, self._max, self._header_timeout = hosts, max_connections, header_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        try:
            listening = bind(self._hosts, self.config.port)
        except OSError as error:
            logger.error("%s", error.strerror or error)
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        # The listener has everything that uvicorn uses of a server.
        self.servers = [Listener(listening, self._connection, self._max)]  # type: ignore[list-item]
        self.started = True

    def _connection(self, crowded: Callable[[], bool], on_lost: Callable[[], None], reserved: bool) -> asyncio.Protocol:
        timeout_s = min(RESERVE_HEADER_S, self._header_timeout) if reserved else self._header_timeout
        state: dict[str, Any] = self.lifespan.state
        return Connection(self.config, self.server_state, state, timeout_s, crowded, on_lost)


def bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of these hosts, at one port. ``::`` takes IPv4 too.

    Raises:
        OSError: a host has no such address, or the address is in use.
    """
    found: list[socket.socket] = []
    try:
        for address in _addresses(hosts):
            found.append(_listening(*address, port))
            # Port 0 becomes a free port at the first address; all other addresses get the same port.
            port = found[-1].getsockname()[1]
    except OSError:
        for listening in found:
            listening.close()
        raise
    return found


def _addresses(hosts: Sequence[str]) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """All addresses of these hosts, in order, without duplicates."""
    answers = [
        answer
        for host in hosts
        for answer in socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    return list(dict.fromkeys((family, address) for family, _, _, _, address in answers))


def _listening(family: socket.AddressFamily, address: tuple[Any, ...], port: int) -> socket.socket:
    # With TCP named, asyncio sends each token at once, without waiting until the reader acknowledges the last one.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, _, *scope = address
        if family == socket.AF_INET6:
            # The default differs between systems.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listening.bind((host, port, *scope))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{host} port {port}: {(error.strerror or str(error)).lower()}") from None
    return listening


def affordable(max_connections: int) -> int:
    """``max_connections``, or fewer if the limit on file descriptors is lower. The limit is raised if possible."""
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return max_connections
    wanted = max_connections + RESERVE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if highest > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            soft = highest
    found = max(1, min(max_connections, soft - RESERVE - min(OTHER_FILES, soft // 2)))
    if found < max_connections:
        logger.warning(
            "max_connections is %d here instead of %d: the limit on open files is %d (ulimit -n)",
            found, max_connections, soft,
        )  # fmt: skip
    return found
