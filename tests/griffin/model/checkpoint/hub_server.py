"""A hub on this machine, with the part of the API that finds and downloads a repository's files."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
Repositories = Mapping[str, Mapping[str, bytes]]


class Hub:
    """A running hub. ``asked``: method and path of every request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[str] = []


@contextmanager
def hub(repositories: Repositories) -> Iterator[Hub]:
    """Serve repositories: id -> file name -> content.

    An id that begins with ``gated/`` is never listed.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            state.asked.append(f"{self.command} {self.path}")
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._about("/".join(parts[2:4]), parts[4:])
            elif parts[2:3] == ["resolve"]:
                files = repositories.get("/".join(parts[:2]), {})
                self._file(files.get("/".join(parts[4:])))
            else:
                self._send(404, b"{}")

        def _about(self, hub_id: str, rest: list[str]) -> None:
            if hub_id.startswith("gated/"):
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                return
            if hub_id not in repositories:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            files = repositories[hub_id]
            if rest[:1] == ["tree"]:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self._send(200, json.dumps(entries).encode())
                return
            about = {"id": hub_id, "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
            self._send(200, json.dumps(about).encode())

        def _file(self, data: bytes | None) -> None:
            if data is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self._send(200, data, {"ETag": etag, "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
