"""A scripted engine for tests of queueing, timing and faults, and a server around it."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import httpx
import torch

from griffin import (
    Accounting,
    Comparison,
    Logprobs,
    Pruning,
    Sampling,
    Scoring,
    Selection,
    Token,
    Verification,
    Verified,
)
from griffin.errors import Cancelled, ContextLengthExceeded
from griffin.method.auto import Outlook
from griffin.model.accounting import BlockBytes
from griffin.neurons import Kept
from griffin.thresholds import Shares, Thresholds
from server.app import create_app
from server.http.listener import BoundedServer, configuration
from server.loader import Loaded
from server.settings import Settings
from server.work.job import EngineLike

# With half of the neurons a token reads 1000 of 1600 bytes.
ACCOUNTING = Accounting(
    total=1000, layers=2, width=100, per_neuron=3, weight_bytes=1600,
    block_bytes=(BlockBytes(100, 0, 100, 200, 0), BlockBytes(100, 0, 300, 400, 0)),
)  # fmt: skip
# Kept are the even neurons of one layer and the odd ones of the other.
EXPERTS = torch.stack([torch.arange(0, 100, 2), torch.arange(1, 100, 2)]).int()
# Method griffin+ plans to read half of everything (THRESHOLDS); the shares really read are COUNTED.
_ZEROS = torch.zeros(2, 100)
THRESHOLDS = Thresholds(Shares(0.5, 0.5, 0.5), _ZEROS, _ZEROS, _ZEROS, _ZEROS, _ZEROS, _ZEROS)
COUNTED = Shares(0.6, 0.5, 0.25)
END = 0x110000
# Tokens after the first are verified in blocks of four drafts, three of which are accepted.
BLOCK = 4
COMPARISON = Comparison(tokens=4, kl=0.25, top1_agreement=0.75, perplexity_ratio=1.5)


class CharacterTokenizer:
    """Each character is one token, and its code point is the id. Ids from 0x110000 on are special."""

    chat_template: str | None = "roles and texts"
    all_special_ids: ClassVar[list[int]] = [END]
    eos_token = "<end>"

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        special = "" if skip_special_tokens else "<end>"
        return "".join(chr(id) if id < 0x110000 else special for id in ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.decode([id], skip_special_tokens=False) for id in ids]

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        if any(message["role"] == "tool" for message in conversation):
            raise ValueError("the role tool is unknown here")
        said = "".join(f"{message['role']}:{message['content']};" for message in conversation)
        return said + ("assistant:" if options["add_generation_prompt"] else "")


@dataclass
class ScriptedEngine:
    """Repeats ``text``, one character a token, until max_tokens. Fields change this and record what was asked.

    step_s: time after each token.
    prefill_s: time before the first token, in steps of 10 ms, as prompt chunks take it.
    gate: no prompt is read before this is set.
    fail_after: the tokens before ``failure`` is raised.
    rebuild_failures: how often a rebuild fails before one succeeds.
    comparisons: the results of comparisons with the full model, in order, whatever is compared.
    compare_gate: no comparison ends before this is set.
    compare_failure: raised instead of a comparison.
    outlook: the sparsity that sparsity auto finds.
    expert_set: the name of the kept neurons.
    drafts: whether to draft in mode fast and without sparsity, too.
    once: whether ``text`` comes once and an end token follows.
    asked: the pruning and verification of each sequence.
    prompts: the text of each prompt.
    compared: prompt, answer and pruning of each comparison that began.
    generated, rebuilt: counts of tokens and of rebuilds.
    reads: the length of each prompt.
    ended: the tokens of each sequence, when it has ended.
    """

    text: str = "abcdefghij"
    step_s: float = 0.0
    prefill_s: float = 0.0
    gate: threading.Event | None = None
    fail_after: int | None = None
    failure: BaseException = field(default_factory=lambda: RuntimeError("secret detail at /some/path"))
    rebuild_failures: int = 0
    comparisons: Iterator[Comparison] = field(default_factory=lambda: itertools.repeat(COMPARISON))
    compare_gate: threading.Event | None = None
    compare_failure: BaseException | None = None
    outlook: Outlook | None = None
    expert_set: str = "cafe"
    drafts: bool = False
    once: bool = False
    asked: list[tuple[Pruning, Verification | None]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    compared: list[tuple[list[int], list[int], Pruning]] = field(default_factory=list)
    accounting: Accounting = ACCOUNTING
    context_length: int = 1000
    vocabulary_size: int = 0x110001
    eos_token_ids: frozenset[int] = frozenset({0x110000})
    generated: int = 0
    rebuilt: int = 0
    reads: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def require(self, pruning: Pruning) -> None:
        """Allow any pruning."""

    def check(self, prompt_ids: Sequence[int], sampling: Sampling | None, scoring: Scoring | None) -> None:
        if len(prompt_ids) + (sampling.max_tokens if sampling else 0) > self.context_length:
            fits = len(prompt_ids) < self.context_length
            raise ContextLengthExceeded("too long", "max_tokens" if fits else "prompt")

    @contextmanager
    def read(
        self, prompt_ids: Sequence[int], pruning: Pruning, scoring: Scoring | None, cancelled: Callable[[], bool]
    ) -> Iterator["ScriptedPrompt"]:
        self.reads.append(len(prompt_ids))
        self.prompts.append("".join(chr(id) for id in prompt_ids if id < END))
        ready_at = time.monotonic() + self.prefill_s
        while time.monotonic() < ready_at or (self.gate and not self.gate.is_set()):
            time.sleep(0.01)
            if cancelled():
                self.ended.append(0)
                raise Cancelled("given up")
        yield ScriptedPrompt(self, list(prompt_ids), pruning, scoring)

    def rebuild(self) -> None:
        self.rebuilt += 1
        if self.rebuilt <= self.rebuild_failures:
            raise RuntimeError("still broken")


class ScriptedPrompt:
    """A prompt that was read. The log-probability of the i-th token is -i / 10."""

    def __init__(self, engine: ScriptedEngine, ids: list[int], pruning: Pruning, scoring: Scoring | None) -> None:
        self._engine, self._ids, self._pruning = engine, ids, pruning
        self.selection = self._selection(len(ids)) if scoring and pruning.sparsity else None
        self.cached_tokens = self.cached_in_files = 0
        self.outlook = engine.outlook if pruning.auto else None
        self.pruning = replace(pruning, sparsity=self.outlook.sparsity, auto=None) if self.outlook else pruning
        self._sparsity = self.pruning.sparsity
        self.scores = [None, *(self._score(i, id, scoring.top) for i, id in enumerate(ids[1:], 1))] if scoring else None

    def generate(
        self, sampling: Sampling, cancelled: Callable[[], bool], verification: Verification | None
    ) -> Iterator[Token]:
        engine, count = self._engine, 0
        engine.asked.append((self._pruning, verification))
        try:
            for count in range(1, sampling.max_tokens + 1):
                if cancelled():
                    return
                if engine.fail_after is not None and count > engine.fail_after:
                    raise engine.failure
                selection = self._selection(5) if count == 2 and self._sparsity else None
                last = count == sampling.max_tokens
                engine.generated += 1
                if engine.once and count > len(engine.text):
                    yield Token(END, None, "stop", selection)
                    return
                # The seed moves the start, so each seed gives another text.
                id = ord(engine.text[(count - 1 + (sampling.seed or 0)) % len(engine.text)])
                logprobs = None if sampling.logprobs is None else self._score(count, id, sampling.logprobs)
                verified = self._verified(count - 1, sampling.max_tokens, verification)
                shares = COUNTED if count > 1 and self._sparsity and self._pruning.method == "griffin+" else None
                yield Token(id, logprobs, "length" if last else None, selection, verified, shares)
                if engine.step_s:
                    time.sleep(engine.step_s)
        finally:
            engine.ended.append(count)

    def _selection(self, prompt_tokens: int) -> Selection:
        chosen = THRESHOLDS if self._pruning.method == "griffin+" else Kept(tuple(EXPERTS))
        return Selection(0.002, self._engine.expert_set, prompt_tokens, chosen)

    def _verified(self, before: int, limit: int, verification: Verification | None) -> Verified | None:
        """The counts of a token's whole block, with ``before`` tokens before it. A pass reads all, a draft the kept
        neurons.
        """
        if verification is None or not (self._sparsity or self._engine.drafts):
            return None
        if verification.mode == "fast" and not (self._engine.drafts and verification.source == "ngram"):
            return None
        blocks = -(-before // BLOCK)
        read = blocks * (ACCOUNTING.total + BLOCK * ACCOUNTING.active(EXPERTS.numel()))
        read_bytes = blocks * (ACCOUNTING.weight_bytes + BLOCK * ACCOUNTING.bytes_per_token(Kept(tuple(EXPERTS))))
        tokens = min(blocks * BLOCK, limit - 1)
        return Verified(tokens, BLOCK * blocks, (BLOCK - 1) * blocks, blocks, blocks, 0, read, read_bytes)

    def compare(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Comparison | None:
        engine = self._engine
        engine.compared.append((self._ids, list(ids), self._pruning))
        while engine.compare_gate and not engine.compare_gate.is_set():
            time.sleep(0.01)
            if cancelled():
                raise Cancelled("given up")
        if engine.compare_failure is not None:
            raise engine.compare_failure
        return next(engine.comparisons) if self._pruning.sparsity and len(ids) > 1 else None

    def _score(self, position: int, id: int, top: int) -> Logprobs:
        value = -position / 10
        return Logprobs(value, tuple((id + rank, value - rank) for rank in range(top)))


def leave_when(condition: Callable[[], object], url: str, path: str = "/v1/completions", **body: object) -> None:
    """Send a request and close the connection when the condition holds, in the middle of the answer or before it.

    A condition is better than a time: on a busy machine a request may not have arrived after a second.
    """
    sent = httpx.Request("POST", f"{url}{path}", json=body)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.headers.items())]
    with socket.create_connection((sent.url.host, sent.url.port or 80)) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + sent.read())
        wait_until(condition)
        # What has come is read, so that the connection is closed in the usual way.
        client.setblocking(False)
        with suppress(BlockingIOError):
            while client.recv(65_536):
                pass


@contextmanager
def served(
    *engines: EngineLike,
    loader: Callable[[Settings], Loaded] | None = None,
    tokenizer: CharacterTokenizer | None = None,
    **settings: object,
) -> Iterator[str]:
    """Serve over real HTTP in a thread, on a free port; yield the address."""
    loaded = Loaded("scripted", tokenizer or CharacterTokenizer(), list(engines))
    known = Settings(**settings)
    app = create_app(known, loader=loader or (lambda _: loaded))
    with listening(app, max_connections=known.max_connections, header_timeout=known.header_timeout) as url:
        wait_until(lambda: loader is not None or app.state.service.models.started)
        yield url


@contextmanager
def listening(app: Any, grace_s: int = 5, max_connections: int = 512, header_timeout: float = 10) -> Iterator[str]:
    """Serve any application over real HTTP in a thread, on a free port; yield the address."""
    # Uvicorn's own log configuration would close other libraries' handlers, whose streams pytest may capture.
    server = BoundedServer(
        configuration(app, 0, log_level="warning", timeout_graceful_shutdown=grace_s),
        ["127.0.0.1"],
        max_connections,
        header_timeout,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Poll until the condition holds; fail after ``timeout_s``, which is long because a machine may be busy."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
