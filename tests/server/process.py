"""A real server process, started as a user starts it and stopped by a signal."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

START_S = 120


# Tests compare answers of several starts. Without this, each start would measure another limit for prompt passes.
FIXED = {"PYTHONUNBUFFERED": "1", "GRIFFIN_PROMPT_PASS_TOKENS": "32"}


class ServerProcess:
    """``python -m server`` on a free port. Its log is kept."""

    def __init__(self, *arguments: str, files: int | None = None, **environment: str) -> None:
        """
        Args:
            files: how many files it may have open at a time.
        """
        self.log = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", *(() if "--port" in arguments else ("--port", "0")), *arguments],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **FIXED, **environment},
            preexec_fn=None if files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """The address in the curl line that the server prints when it is ready."""
        assert self._ready.wait(START_S), self.log
        found = re.search(r"^curl (http://\S+)/v1/completions", self.log, re.MULTILINE)
        assert found, self.log
        return found[1]

    def terminate(self, timeout_s: float = START_S) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = START_S) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(START_S)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if line.startswith("curl "):
                self._ready.set()
        self.process.stderr.close()
        self._ready.set()


@contextmanager
def running(*arguments: str, files: int | None = None, **environment: str) -> Iterator[ServerProcess]:
    server = ServerProcess(*arguments, files=files, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()
