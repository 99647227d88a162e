"""create_app(settings): lifespan, routes, error handlers. All wiring, no logic."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from griffin.errors import GriffinError
from server import errors
from server.answer.ignored import IGNORED_HEADER
from server.http import faults
from server.http.cors import Cors
from server.http.middleware import (
    KEY_HEADERS,
    OPERATIONS,
    REQUEST_ID,
    Admission,
    Authentication,
    BodyLimit,
    Door,
    RequestLog,
)
from server.jsonwire import Json
from server.loader import Found, Loaded, find, load
from server.protocol import stream
from server.protocol.stream import Stream
from server.routes import anthropic, chat, completions, experts, models, operations, responses, tokenization
from server.routes.generating import GeneratingRouter
from server.routes.page import PageRoutes
from server.service import Service
from server.settings import Settings, comma_separated

logger = logging.getLogger("griffin")

# Seconds for the workers' threads to end; each ends within one token.
LAST_TOKEN_S = 5


def create_app(
    settings: Settings,
    loader: Callable[[Settings], Loaded] = load,
    finder: Callable[[Settings], Found] = find,
    on_ready: Callable[[Loaded], None] = lambda loaded: None,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> FastAPI:
    """The service. It answers /health at once, and completions when the loader has returned.

    Args:
        loader: loads a model; runs in its own thread.
        finder: finds the models if there are several; runs in its own thread.
        on_ready, on_failure: called on the event loop when the loader has returned, or has failed with a reason.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service

        def fail(reason: str) -> None:
            service.failure = reason
            on_failure(reason)

        async def start() -> None:
            try:
                on_ready(await service.models.start())
            except GriffinError as error:
                fail(str(error))
            except Exception as error:
                logger.exception("the model could not be loaded")
                fail(f"{type(error).__name__} while loading; see above")

        starting = asyncio.create_task(start())
        yield
        starting.cancel()
        service.close()
        await asyncio.to_thread(service.join, LAST_TOKEN_S)

    app = FastAPI(
        title="GRIFFIN inference server",
        version=version("griffin-server"),
        description="OpenAI's API, where each request may leave out feed-forward neurons (sparsity).",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Json,
    )
    app.state.service = Service(settings, loader, finder)
    faults.install(app)
    routers = [
        group.router for group in (completions, chat, responses, anthropic, models, experts, tokenization, operations)
    ]
    streams = {
        path: each
        for router in routers
        if isinstance(router, GeneratingRouter)
        for path, each in router.streams.items()
    }
    app.state.error_shapes = {
        route.path: router.errors
        for router in routers
        if isinstance(router, GeneratingRouter)
        for route in router.routes
        if isinstance(route, Route)
    }
    app.state.paths = [route.path for router in routers for route in router.routes if isinstance(route, Route)]
    page = PageRoutes() if settings.page else None
    for router in (*routers, *([page.router] if page else [])):
        app.include_router(router)
    _guard(app, settings, streams, page.paths if page else ())
    app.openapi = partial(_openapi, app.openapi, settings, streams)  # type: ignore[method-assign]  # as FastAPI says
    return app


def _guard(app: FastAPI, settings: Settings, generating: Collection[str], page_paths: Sequence[str]) -> None:
    """Add the middleware from the innermost to the outermost: each one wraps those added before it."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout)
    app.add_middleware(Admission, generating=generating)
    if settings.api_keys is not None:
        keys = comma_separated(settings.api_keys.get_secret_value())
        open_paths = (*page_paths, *(OPERATIONS if settings.open_operations else ()))
        app.add_middleware(Authentication, keys=keys, open_paths=open_paths)
    app.add_middleware(Door)
    app.add_middleware(faults.Faults)
    if settings.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=comma_separated(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, IGNORED_HEADER, "retry-after", *errors.NO_RETRY],
            # Pages on the open web that call a server in a private network; browsers ask for this separately.
            allow_private_network=True,
        )
    app.add_middleware(RequestLog, routine=(*operations.PATHS, *page_paths))


def _openapi(
    generate: Callable[[], dict[str, Any]], settings: Settings, streams: Mapping[str, Stream]
) -> dict[str, Any]:
    """FastAPI's document, plus the events of streams and the ways to send a key. Its 422 is removed: invalid bodies
    get 400 here."""
    document = generate()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    document["components"]["schemas"] = {**stream.schemas([*streams.values()]), **document["components"]["schemas"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    if settings.api_keys is not None:
        _describe_keys(document, OPERATIONS if settings.open_operations else ())
    return document


def _describe_keys(document: dict[str, Any], open_paths: Sequence[str]) -> None:
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}} | {
        name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS
    }
    document["components"]["securitySchemes"] = schemes
    # Any one of them is enough.
    document["security"] = [{name: []} for name in schemes]
    for path in open_paths:
        for operation in document["paths"][path].values():
            operation["security"] = []
