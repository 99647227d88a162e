"""``python -m server``: settings, then uvicorn."""

import json
import logging
import signal
import sys
import time

import uvicorn

from server.app import create_app
from server.service import Loaded
from server.settings import Settings, SettingsInvalid, read_settings, unknown_variables

logger = logging.getLogger("griffin")

PROMPT = (
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water. "
    "In short, plants need sunlight because"
)


def main() -> int:
    """Serve until told to stop. The exit code: 0 when told to, 1 when the model cannot be served, 2 for wrong flags."""
    try:
        settings = read_settings(sys.argv[1:])
    except SettingsInvalid as error:
        print(f"griffin: {error}; see python -m server --help", file=sys.stderr)
        return 2
    logging.basicConfig(format="griffin: %(message)s", level=logging.WARNING)
    logger.setLevel(settings.log_level.upper())
    for name in unknown_variables():
        logger.warning("%s is not a setting and is ignored; see python -m server --help", name)
    return serve(settings)


def serve(settings: Settings) -> int:
    started = time.monotonic()

    def ready(loaded: Loaded) -> None:
        seconds = time.monotonic() - started
        logger.info("%s is ready, loaded in %.1f s (%s). Try it:\n\n%s\n", loaded.name, seconds, loaded.description,
                    curl_line(loaded.name, address(server, settings)))  # fmt: skip

    def failed(reason: str) -> None:
        logger.error("%s", reason)
        server.should_exit = True

    app = create_app(settings, on_ready=ready, on_failure=failed)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=settings.drain_timeout,
        )
    )
    # uvicorn drains, then raises the signal again for whoever handled it before: nobody, so that the exit code is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    logger.info("loading %s ...", settings.model)
    server.run()
    return 1 if app.state.service.failure else 0


def address(server: uvicorn.Server, settings: Settings) -> str:
    port = settings.port
    for listener in server.servers:
        for socket in listener.sockets:
            port = socket.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


def curl_line(model: str, url: str) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "sparsity": 0.25}
    return f"curl {url}/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


if __name__ == "__main__":
    sys.exit(main())
