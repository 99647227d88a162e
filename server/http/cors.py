"""Which web pages may call the server: starlette's middleware, with OpenAI's error form and a hint what to set."""

from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.responses import Response

from server.errors import CorsRefused
from server.jsonwire import Json

# With one of these headers a browser asks whether a page on the open web may call a server in a private network.
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
        # A foreign origin is not told what other origins may do.
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
            return f"pages may not call this server with {_ascii(method)}; allowed: {' and '.join(self.allow_methods)}"
        return "this request from a page is not allowed, although --cors-origins allows the page's origin"


def _ascii(text: str) -> str:
    return ascii(text[:100])[1:-1]
