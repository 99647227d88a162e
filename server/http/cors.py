"""Which web pages may call: starlette's middleware, with refusals in OpenAI's form that say what to set."""

from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.responses import Response

from server.errors import CorsRefused
from server.jsonwire import Json

# A browser asks by one of these headers whether a page of the open web may call a server on a private network.
NETWORKS = ("Private-Network", "Local-Network")


class Cors(CORSMiddleware):
    """Answers preflights, and marks answers that a page may read."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            for network in NETWORKS:
                if f"access-control-request-{network}" in request_headers:
                    answer.headers[f"Access-Control-Allow-{network}"] = "true"
            return answer
        # A foreign origin does not learn what others may do.
        hidden = ("content-",) if self.is_allowed_origin(request_headers["origin"]) else ("content-", "access-control-")
        kept = {name: value for name, value in answer.headers.items() if not name.startswith(hidden)}
        error = CorsRefused(self._reason(request_headers))
        return Json(error.body(), error.status, {**kept, **error.headers})

    def _reason(self, headers: Headers) -> str:
        origin, method = headers["origin"], headers["access-control-request-method"]
        if not self.is_allowed_origin(origin):
            return (
                f"pages of {_ascii(origin)} may not call this server; its operator can add the origin to --cors-origins"
            )
        if method not in self.allow_methods:
            return f"pages may not call this server by {_ascii(method)}; it takes {' and '.join(self.allow_methods)}"
        return "this request of a page is not allowed; its origin is, by --cors-origins"


def _ascii(text: str) -> str:
    return ascii(text[:100])[1:-1]
