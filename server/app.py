"""create_app(settings): lifespan, routes, error handlers. All wiring, no logic."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from griffin.errors import GriffinError
from server import errors
from server.routes import completions, models, operations
from server.service import Loaded, Service, load
from server.settings import Settings

logger = logging.getLogger("griffin")

# For a worker to notice that it is to stop.
LAST_TOKEN_S = 5


def create_app(
    settings: Settings,
    loader: Callable[[Settings], Loaded] = load,
    on_ready: Callable[[Loaded], None] = lambda loaded: None,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> FastAPI:
    """The service. It answers /health at once, and completions as soon as the loader has returned.

    Args:
        loader: gives the model; runs in a thread of its own.
        on_ready, on_failure: called on the event loop when the loader has returned, or failed and why.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service
        loop = asyncio.get_running_loop()

        def succeed(loaded: Loaded) -> None:
            service.serve(loaded)
            on_ready(loaded)

        def fail(reason: str) -> None:
            service.failure = reason
            on_failure(reason)

        def load_model() -> None:
            # A loop that has closed meanwhile needs no model.
            with suppress(RuntimeError):
                try:
                    loaded = loader(settings)
                except GriffinError as error:
                    loop.call_soon_threadsafe(fail, str(error))
                except Exception as error:
                    logger.exception("the model could not be loaded")
                    loop.call_soon_threadsafe(fail, f"{type(error).__name__} while loading; see above")
                else:
                    loop.call_soon_threadsafe(succeed, loaded)

        # A daemon: a server told to stop does not wait for a checkpoint.
        threading.Thread(target=load_model, name="loader", daemon=True).start()
        yield
        service.close()
        await asyncio.to_thread(service.join, LAST_TOKEN_S)

    app = FastAPI(title="GRIFFIN inference server", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = Service(settings)
    errors.install(app)
    for group in (completions, models, operations):
        app.include_router(group.router)
    return app
