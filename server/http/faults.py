"""Every failure of a request becomes an answer in its API's form, a word in the log line, and a count."""

import asyncio
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import OPENAI, ApiError, InvalidField, ServerDraining, Shape, as_api_error
from server.http.explain import explain
from server.http.paths import meant
from server.jsonwire import Json


class Faults:
    """Answers every exception of a route. Without it, the framework closes the connection after an unexpected one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            # The drain ended while this request was still arriving.
            if started or scope["type"] != "http" or not scope["app"].state.service.draining:
                raise
            await _answer(scope, ServerDraining())(scope, receive, send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await _answer(scope, as_api_error(error))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Answer every failure of the app in OpenAI's form, or in the form of ``app.state.error_shapes`` for its path.

    ``app.state.paths`` are the paths that answers may name."""

    async def validation(request: Request, error: Exception) -> Json:
        assert isinstance(error, RequestValidationError)
        return _answer(request.scope, explain(error.errors()))

    async def http(request: Request, error: Exception) -> Json:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ApiError):
            # Raised while the framework reads the body; the framework treats any exception there as its own.
            return _answer(request.scope, error.__cause__)
        # The framework's own refusals: unknown route, wrong method.
        message = f"{error.detail} ({request.method} {request.url.path[:200]})"
        message += _instead(request, error)
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            message += "; no web page may call this server: its operator can set --cors-origins"
        answer = InvalidField(message, None, _code(error))
        answer.status, answer.headers = error.status_code, error.headers or {}
        return _answer(request.scope, answer)

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)


def _instead(request: Request, error: HTTPException) -> str:
    """What to do instead, for the end of the message; empty if nothing is known."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (allowed := (error.headers or {}).get("Allow")):
        return f"; use {allowed.replace(', ', ' or ')}"
    if error.status_code != HTTPStatus.NOT_FOUND:
        return ""
    hint = meant(request.url.path, request.app.state.paths)
    return f"; {hint}" if hint else ""


def _answer(scope: Scope, error: ApiError) -> Json:
    """The client's answer. The reason goes into the log line and, unless the request was queued, into a metric."""
    scope["state"]["log"].update(code=error.code, param=error.param)
    if scope["method"] == "POST" and not scope["state"].get("accepted"):
        scope["app"].state.service.metrics.rejected.labels(error.code).inc()
    shape: Shape = scope["app"].state.error_shapes.get(scope["path"], OPENAI)
    return Json(shape.body(error), error.status, error.headers)


def _code(error: HTTPException) -> str:
    return HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
