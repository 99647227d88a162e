"""An engine that follows a script, for tests of queueing, timing and faults; and a server around it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import uvicorn

from griffin import Accounting, Pruning, Sampling, Selection, Token
from griffin.errors import ContextLengthExceeded
from server.app import create_app
from server.service import Loaded
from server.settings import Settings

ACCOUNTING = Accounting(total=1000, layers=2, width=100, per_neuron=3)


class CharacterTokenizer:
    """One token for each character, its id the code point."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


@dataclass
class ScriptedEngine:
    """Says ``text``, a character a token, over and over until max_tokens; then does as told.

    step_s: time between tokens. prefill_s: time before the first, in steps of 10 ms, as prompt chunks.
    gate: nothing is generated before it is set. fail_after: tokens before an error.
    """

    text: str = "abcdefghij"
    step_s: float = 0.0
    prefill_s: float = 0.0
    gate: threading.Event | None = None
    fail_after: int | None = None
    accounting: Accounting = ACCOUNTING
    context_length: int = 1000
    generated: int = 0
    ended: list[int] = field(default_factory=list)

    def check(self, prompt_ids: Sequence[int], max_tokens: int) -> None:
        if len(prompt_ids) + max_tokens > self.context_length:
            raise ContextLengthExceeded("too long", "prompt")

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, pruning: Pruning, cancelled: Callable[[], bool]
    ) -> Iterator[Token]:
        count = 0
        try:
            ready_at = time.monotonic() + self.prefill_s
            while time.monotonic() < ready_at or (self.gate and not self.gate.is_set()):
                time.sleep(0.01)
                if cancelled():
                    return
            for count in range(1, sampling.max_tokens + 1):
                if cancelled():
                    return
                if self.fail_after is not None and count > self.fail_after:
                    raise RuntimeError("secret detail at /some/path")
                selection = Selection(50, 0.002, "cafe") if count == 2 and pruning.sparsity else None
                last = count == sampling.max_tokens
                self.generated += 1
                yield Token(ord(self.text[(count - 1) % len(self.text)]), -1.0, "length" if last else None, selection)
                time.sleep(self.step_s)
        finally:
            self.ended.append(count)


def leave_early(url: str, after_s: float, **body: object) -> None:
    """A client that goes away in the middle of its answer, or of waiting for it."""
    answer = httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=after_s)
    with suppress(httpx.ReadTimeout), answer as response:
        deadline = time.monotonic() + after_s
        for _ in response.iter_lines():
            if time.monotonic() > deadline:
                return


@contextmanager
def served(
    *engines: ScriptedEngine, loader: Callable[[Settings], Loaded] | None = None, **settings: object
) -> Iterator[str]:
    """A real HTTP server in a thread, on a free port; its address."""
    loaded = Loaded("scripted", CharacterTokenizer(), list(engines))
    app = create_app(Settings(**settings), loader=loader or (lambda _: loaded))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started and (loader is not None or app.state.service.loaded is not None))
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Poll; a condition that never holds is a failure, not a hang."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
