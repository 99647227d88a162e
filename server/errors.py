"""Everything that goes wrong in a request, and the one mapping of it to HTTP.

ApiError
├── InvalidField          400, names the field
├── InvalidJson           400, names the place
├── InvalidHttp           400
├── UnsupportedUpgrade    400
├── CorsRefused           400, says what to set
├── Unauthorized          401, says how to present a key
├── ModelNotFound         404
├── ExpertsNotFound       404
├── HeaderTimeout         408
├── BodyTimeout           408
├── BodyTooLarge          413
├── UnsupportedEncoding   415
├── UnsupportedMediaType  415
├── QueueFull             429, with Retry-After
├── InternalError         500, not worth a retry
├── OutOfMemory           500, not worth a retry
├── ModelLoading          503, with Retry-After
├── ServerDraining        503, with Retry-After
├── EngineFailed          503, with Retry-After
├── TooManyConnections    503, with Retry-After
└── RequestTimeout        504, not worth a retry

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

import asyncio
import logging
import reprlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from griffin import errors as griffin_errors
from griffin.errors import ContextLengthExceeded, InvalidRequest
from server.jsonwire import Json
from server.protocol.report import ErrorResponse
from server.protocol.tokenization import FORMS

logger = logging.getLogger("griffin")


class ApiError(Exception):
    """An answer that is an error. Its text is for the client."""

    status = 500
    type = "server_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class InvalidField(ApiError):
    status, type = 400, "invalid_request_error"
    code = "invalid_value"

    def __init__(self, message: str, param: str | None, code: str | None = None) -> None:
        super().__init__(message, param)
        self.code = code or self.code


class InvalidJson(ApiError):
    status, type, code = 400, "invalid_request_error", "invalid_json"


class ModelNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "model_not_found"

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(f"model {_short(asked)} does not exist here; this server has '{served}'", "model")


class ExpertsNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "expert_set_not_found"

    def __init__(self, asked: str, param: str = "expert_set") -> None:
        super().__init__(
            f"expert set {_short(asked)} is not known here; only those of the latest requests are kept", param
        )


class _Unavailable(ApiError):
    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after)}


class QueueFull(_Unavailable):
    status, type, code = 429, "rate_limit_error", "queue_full"


class ModelLoading(_Unavailable):
    status, type, code = 503, "server_error", "model_loading"


class ServerDraining(_Unavailable):
    status, type, code = 503, "server_error", "server_draining"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request to another one", 1)


class TooManyConnections(_Unavailable):
    status, type, code = 503, "server_error", "too_many_connections"

    def __init__(self) -> None:
        super().__init__("as many connections are open as this server serves; try again soon", 1)
        self.headers = {**self.headers, "Connection": "close"}


class EngineFailed(_Unavailable):
    status, type, code = 503, "server_error", "engine_failed"


class Unauthorized(ApiError):
    status, type, code = 401, "authentication_error", "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class BodyTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class BodyTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "body_timeout"


class CorsRefused(ApiError):
    status, type, code = 400, "invalid_request_error", "cors_refused"


class HeaderTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "header_timeout"


class InvalidHttp(ApiError):
    status, type, code = 400, "invalid_request_error", "invalid_http"


class UnsupportedUpgrade(ApiError):
    status, type, code = 400, "invalid_request_error", "unsupported_upgrade"

    def __init__(self) -> None:
        super().__init__("this server has no WebSocket; send a POST request, with stream=true for an answer in parts")


class UnsupportedEncoding(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_content_encoding"
    headers: Mapping[str, str] = {"Accept-Encoding": "identity"}


class UnsupportedMediaType(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"
    headers: Mapping[str, str] = {"Accept": "application/json"}


# OpenAI's SDKs repeat a request that ends in 408 or 5xx; the fault would be repeated too.
NO_RETRY = {"x-should-retry": "false"}


class RequestTimeout(ApiError):
    status, type, code = 504, "server_error", "request_timeout"
    headers: Mapping[str, str] = NO_RETRY


class InternalError(ApiError):
    """A fault of ours: its cause is in the log, not in the answer."""

    status, type = 500, "server_error"
    code = "internal_error"
    headers: Mapping[str, str] = NO_RETRY

    def __init__(self, message: str = "the request failed inside the server; the cause is in its log") -> None:
        super().__init__(message)


class OutOfMemory(InternalError):
    code = "out_of_memory"


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequest):
        code = "context_length_exceeded" if isinstance(error, ContextLengthExceeded) else None
        return InvalidField(str(error), error.param, code)
    if isinstance(error, griffin_errors.OutOfMemory):
        return OutOfMemory("there was not enough memory for this request; a shorter one may do")
    logger.error("request failed", exc_info=error)
    return InternalError()


def reason(error: Exception) -> str:
    """A short word for an error, from a short list of them."""
    if isinstance(error, ApiError):
        return error.code or InternalError.code
    if isinstance(error, InvalidRequest):
        return InvalidField.code
    return OutOfMemory.code if isinstance(error, griffin_errors.OutOfMemory) else InternalError.code


STATUSES = {
    400: "a field is wrong; the error names it",
    401: "a key is needed, and no valid one was sent",
    404: "no such model, or nothing of that name",
    408: "the body took too long to arrive",
    413: "the body is too large",
    415: "the body is compressed, or not sent as JSON",
    429: "the queue is full; see Retry-After",
    500: "a fault of the server, not worth a retry",
    503: "loading, shutting down, or an engine that has failed; see Retry-After",
    504: "not finished within the request's time, not worth a retry",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the errors that an endpoint may answer with."""
    return {status: {"model": ErrorResponse, "description": STATUSES[status]} for status in statuses}


ASKED = (401, 500, 503)
POSTED = (400, 401, 404, 408, 413, 415, 500, 503)
GENERATED = (*POSTED, 429, 504)


class Faults:
    """Answers every exception of a route. The framework itself closes the connection after an unexpected one."""

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
    """Answer every failure of the app in OpenAI's form."""

    async def validation(request: Request, error: Exception) -> Json:
        assert isinstance(error, RequestValidationError)
        return _answer(request.scope, explain(error.errors()))

    async def http(request: Request, error: Exception) -> Json:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ApiError):
            # Raised while the framework reads the body; it takes any exception there for its own.
            return _answer(request.scope, error.__cause__)
        # The framework's own refusals: no such route, wrong method.
        message = f"{error.detail} ({request.method} {request.url.path[:200]})"
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            message += "; no web page may call this server: its operator can set --cors-origins"
        answer = InvalidField(message, None, _code(error))
        answer.status, answer.headers = error.status_code, error.headers or {}
        return _answer(request.scope, answer)

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)


def _answer(scope: Scope, error: ApiError) -> Json:
    """What the client reads. The reason goes into the log line and, unless the request was queued, into a metric."""
    scope["state"]["log"].update(code=error.code, param=error.param)
    if scope["method"] == "POST" and not scope["state"].get("accepted"):
        scope["app"].state.service.metrics.rejected.labels(error.code).inc()
    return Json(error.body(), error.status, error.headers)


# Names at the beginning of a pydantic location that are no fields of the client's.
NO_FIELDS = ("body", *FORMS)


def explain(errors: Sequence[Mapping[str, Any]]) -> InvalidField:
    """One sentence about the first of pydantic's errors. Short, whatever was sent."""
    first = errors[0]
    param = _path(first["loc"])
    if first["type"] == "refused":
        rule = first["ctx"]
        param = _joined(param, rule["param"])
        separator = " " if rule["why"].startswith(("is ", "differs ")) else ": "
        return InvalidField(f"{param}{separator}{rule['why']}", param, rule["code"])
    if not param:
        return InvalidField(f"the body: {first['msg']}", None)
    if first["type"] == "missing":
        return InvalidField(f"{param} is required", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return InvalidField(f"{param} is not a field of {param.partition('.')[0]}", param, "unknown_parameter")
    message = f"{param}: {str(first['msg']).removeprefix('Value error, ')} (got {_short(first['input'])})"
    # A list of plain values is one field; which of them is wrong stands in the text.
    listed = isinstance(first["loc"][-1], int) and not param.startswith("messages")
    return InvalidField(message, param.rpartition("[")[0] if listed else param)


def _path(location: Sequence[str | int]) -> str:
    """A pydantic location as OpenAI writes one: messages[0].role."""
    path = ""
    for depth, part in enumerate(location):
        if depth < 2 and part in NO_FIELDS:
            continue
        # A key of the client's own may be long, or not even be text.
        name = str(part)[:64].encode("ascii", "backslashreplace").decode()
        path = _joined(path, f"[{name}]" if isinstance(part, int) else name)
    return path


def _joined(path: str, name: str) -> str:
    return path + name if name.startswith("[") or not path else f"{path}.{name}"


def _short(value: object) -> str:
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = printer.maxlong = 60
    printer.maxlist = printer.maxdict = 3
    printer.maxlevel = 2
    return printer.repr(value)


def _code(error: HTTPException) -> str:
    return HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
