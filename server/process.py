"""The server's process: settings, uvicorn, signals, and the exit code."""

import asyncio
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from socket import socket
from types import FrameType
from typing import NoReturn

import uvicorn

from server import log
from server.app import create_app
from server.commandline.reading import read_settings
from server.http.listener import BoundedServer, affordable, configuration
from server.loader import Loaded
from server.service import Service
from server.settings import Settings, SettingsInvalid, comma_separated, names_no_key, unknown_variables

logger = logging.getLogger("griffin")

# Seconds between checks whether a drain has ended.
POLL_S = 0.05
# Seconds after the drain timeout, so that clients receive the error.
ANSWER_S = 2

PROMPT = (
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water. "
    "In short, plants need sunlight because"
)


class Server(BoundedServer):
    """uvicorn with our drain. uvicorn itself waits for connections to end, then cuts them off after the timeout."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        settings = service.settings
        max_connections = affordable(settings.max_connections)
        super().__init__(config, comma_separated(settings.host), max_connections, settings.header_timeout)
        self._service = service
        self._draining_on: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins a drain. The second ends the drain at once; every waiting client gets an error."""
        if self._draining_on is None or self._service.closed:
            super().handle_exit(sig, frame)
        else:
            # Not inside this handler: the interrupted code may hold the locks that this needs.
            self._draining_on.call_soon_threadsafe(self._service.close)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        service, timeout_s = self._service, self._service.settings.drain_timeout
        service.drain()
        self._draining_on = asyncio.get_running_loop()
        self._draining_on.call_later(timeout_s, service.close)
        # The server listens until the drain has ended: /ready tells a balancer to go elsewhere, Prometheus reads the
        # progress, and a new request is told to try again.
        while not (service.idle or service.closed or self.force_exit):
            await asyncio.sleep(POLL_S)
        # Time for answers on their way to a slow reader.
        left_s = 0.0 if service.closed else max(0.0, timeout_s - service.draining_s)
        self.config.timeout_graceful_shutdown = math.ceil(left_s) + ANSWER_S
        await super().shutdown(sockets)


def main() -> int:
    """Serve until told to stop. Exit code: 0 when told to stop, 1 when it cannot serve, 2 for wrong flags."""
    try:
        settings = read_settings(sys.argv[1:])
    except SettingsInvalid as error:
        print(f"griffin: {error}; see python -m server --help", file=sys.stderr)
        return 2
    log.configure(settings.log_level, settings.log_format)
    if names_no_key(settings):
        logger.warning("api_keys is empty: anyone who reaches this server may use it")
    for name in unknown_variables():
        logger.warning("%s is not a setting and is ignored; see python -m server --help", name)
    return serve(settings)


def serve(settings: Settings) -> int:
    started = time.monotonic()

    def ready(loaded: Loaded) -> None:
        if server.should_exit:
            # The server was told to stop in the meantime and has no address any more.
            return
        seconds = time.monotonic() - started
        url = address(server, settings)
        logger.info("%s is ready, loaded in %.1f s (%s). Try it%s:\n\n%s\n", loaded.name, seconds, loaded.description,
                    f" in a browser at {url}, or" if settings.page else "",
                    curl_line(loaded.name, url, settings.api_keys is not None))  # fmt: skip

    def failed(reason: str) -> None:
        logger.error("%s", reason)
        server.should_exit = True

    app = create_app(settings, on_ready=ready, on_failure=failed)
    server = Server(configuration(app, settings.port), app.state.service)
    # These handlers apply before uvicorn sets its own, and after it has drained: uvicorn then raises the signal again,
    # and the default action would end the process with an exit code other than 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    logger.info("loading %s ...", settings.each_model[0].model)
    try:
        server.run()
    except SystemExit:
        # uvicorn has logged why.
        logger.error("cannot listen on %s port %d; choose others with --host and --port", settings.host, settings.port)
        return 1
    return 1 if app.state.service.failure else 0


def address(server: uvicorn.Server, settings: Settings) -> str:
    """The address for a browser on this machine."""
    port = settings.port
    for listener in server.servers:
        for bound in listener.sockets:
            port = bound.getsockname()[1]
    host = comma_separated(settings.host)[0].strip("[]")
    # These mean "every address"; a browser needs a single one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}"


def curl_line(model: str, url: str, keyed: bool) -> str:
    """A first request, to copy. ``keyed``: show where the API key goes."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "sparsity": 0.25}
    key = " -H 'Authorization: Bearer KEY'" if keyed else ""
    return f"curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def leave(code: int) -> NoReturn:
    """Exit even if a thread is deep inside torch, where the interpreter's normal exit would abort."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.daemon and thread.is_alive() for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)
