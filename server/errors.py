"""Everything that goes wrong in a request, and the HTTP status of each.

ApiError
├── InvalidField          400, names the field
├── InvalidJson           400, names the place
├── InvalidHttp           400
├── UnsupportedUpgrade    400
├── CorsRefused           400, says what to set
├── Unauthorized          401, says how to present a key
├── ModelNotFound         404
├── ExpertsNotFound       404
├── ResponseNotFound      404, says that none is kept
├── HeaderTimeout         408
├── BodyTimeout           408
├── BodyTooLarge          413
├── UnsupportedEncoding   415
├── UnsupportedMediaType  415
├── QueueFull             429, with Retry-After
├── ClientLeft            499, which nobody reads
├── InternalError         500, not worth a retry
├── OutOfMemory           500, not worth a retry
├── ModelLoading          503, with Retry-After
├── ModelUnavailable      503, with Retry-After
├── ServerDraining        503, with Retry-After
├── EngineFailed          503, with Retry-After
├── TooManyConnections    503, with Retry-After
└── RequestTimeout        504, not worth a retry

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}; or Anthropic's, see ``Shape``.
"""

import logging
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from griffin import errors as griffin_errors
from griffin.errors import ContextLengthExceeded, InvalidRequest
from server.protocol.report import AnthropicError, ErrorResponse

logger = logging.getLogger("griffin")


class ApiError(Exception):
    """An answer that is an error. Its text is written for the client."""

    status = 500
    type = "server_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> dict[str, Any]:
        """OpenAI's object."""
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
        super().__init__(f"model {short(asked)} does not exist here; this server has '{served}'", "model")


class ExpertsNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "expert_set_not_found"

    def __init__(self, asked: str, param: str = "expert_set") -> None:
        super().__init__(
            f"expert set {short(asked)} is not known here; only those of the latest requests are kept: "
            "a request without one chooses its neurons anew",
            param,
        )


class ResponseNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "response_not_found"

    def __init__(self, asked: str) -> None:
        super().__init__(
            f"response {short(asked)} is not here: this server keeps no responses; send all items so far as input",
            "response_id",
        )


class _Unavailable(ApiError):
    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after)}


class QueueFull(_Unavailable):
    status, type, code = 429, "rate_limit_error", "queue_full"


class ModelLoading(_Unavailable):
    status, type, code = 503, "server_error", "model_loading"


class ModelUnavailable(_Unavailable):
    """A model could not be loaded. The next request for it tries again."""

    status, type, code = 503, "server_error", "model_unavailable"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {short(name)} could not be loaded; the cause is in the server's log", 30)


class ClientLeft(ApiError):
    """Nobody reads this answer; proxies log 499 for a client that left."""

    status, type, code = 499, "server_error", "client_left"

    def __init__(self) -> None:
        super().__init__("the client has left")


class ServerDraining(_Unavailable):
    status, type, code = 503, "server_error", "server_draining"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request to another one", 1)


class TooManyConnections(_Unavailable):
    status, type, code = 503, "server_error", "too_many_connections"

    def __init__(self) -> None:
        super().__init__("all connections of the server are in use; try again soon", 1)
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


# OpenAI's SDKs repeat a request after 408 or 5xx, but the same error would come again.
NO_RETRY = {"x-should-retry": "false"}


class RequestTimeout(ApiError):
    status, type, code = 504, "server_error", "request_timeout"
    headers: Mapping[str, str] = NO_RETRY


class InternalError(ApiError):
    """A fault of the server. Its cause is in the log, not in the answer."""

    status, type = 500, "server_error"
    code = "internal_error"
    headers: Mapping[str, str] = NO_RETRY

    def __init__(self, message: str = "the request failed inside the server; the cause is in its log") -> None:
        super().__init__(message)


class OutOfMemory(InternalError):
    code = "out_of_memory"


def as_api_error(error: Exception) -> ApiError:
    """The error that a client gets for any exception."""
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
    """One word for an error, from a short list."""
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


# Anthropic's words for them.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How an API writes an error.

    body: the error as a JSON object. model: its type, for OpenAPI.
    """

    body: Callable[[ApiError], dict[str, Any]]
    model: type[BaseModel]

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """For OpenAPI: the errors that an endpoint may return."""
        return {status: {"model": self.model, "description": STATUSES[status]} for status in statuses}


def _anthropic(error: ApiError) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


OPENAI, ANTHROPIC = Shape(ApiError.body, ErrorResponse), Shape(_anthropic, AnthropicError)
documented = OPENAI.documented


ASKED = (401, 500, 503)
POSTED = (400, 401, 404, 408, 413, 415, 500, 503)
GENERATED = (*POSTED, 429, 504)


def short(value: object) -> str:
    """A client's value, cut short for an error text."""
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = printer.maxlong = 60
    printer.maxlist = printer.maxdict = 3
    printer.maxlevel = 2
    return printer.repr(value)
