"""One request as a worker sees it: prompts in, events out; and what a worker needs of an engine."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from griffin import Accounting, Comparison, Logprobs, Pruning, Sampling, Scoring, Selection, Token, Verification
from griffin.method.auto import Outlook
from server.errors import RequestTimeout
from server.work.mailbox import Mailbox

# A job waits for its reader when so many events (some megabytes) are unread, and at most for so long.
UNREAD = 4096
READER_PAUSE_S = 0.02
LONGEST_STALL_S = 10.0


class PromptLike(Protocol):
    """What a worker needs of a prompt that was read. ``griffin.Prompt`` provides it."""

    scores: list[Logprobs | None] | None
    cached_tokens: int
    cached_in_files: int
    outlook: Outlook | None

    @property
    def pruning(self) -> Pruning: ...

    @property
    def selection(self) -> Selection | None: ...

    def generate(
        self, sampling: Sampling, cancelled: Callable[[], bool], verification: Verification | None
    ) -> Iterator[Token]: ...

    def compare(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Comparison | None: ...


class EngineLike(Protocol):
    """What a worker needs of an engine. ``griffin.Engine`` provides it."""

    accounting: Accounting
    context_length: int
    vocabulary_size: int
    eos_token_ids: frozenset[int]

    def check(self, prompt_ids: Sequence[int], sampling: Sampling | None, scoring: Scoring | None) -> None: ...

    def require(self, pruning: Pruning) -> None: ...

    def read(
        self, prompt_ids: Sequence[int], pruning: Pruning, scoring: Scoring | None, cancelled: Callable[[], bool]
    ) -> AbstractContextManager[PromptLike]: ...

    def rebuild(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and one sampling for each sequence to generate from it; there may be none.

    compare: compare each finished sequence with the full model.
    """

    prompt_ids: list[int]
    samplings: Sequence[Sampling]
    pruning: Pruning
    scoring: Scoring | None = None
    verification: Verification = field(default_factory=Verification)
    compare: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt was read, and scored if requested.

    scores: one for each token of the prompt; None if not requested.
    selection: the neurons chosen for it; None if they are not chosen yet.
    cached_tokens: tokens reused from an earlier prompt.
    cached_in_files: how many of those came from files, not from memory.
    pruning: the choices for its answers. With sparsity auto, only this has the number: ``Ask`` keeps the word auto.
    outlook: what sparsity auto predicted, if it was requested.
    """

    prompt: int
    scores: list[Logprobs | None] | None
    selection: Selection | None
    cached_tokens: int
    pruning: Pruning
    outlook: Outlook | None = None
    cached_in_files: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """A token of one of a prompt's sequences, and when it was made."""

    prompt: int
    sample: int
    token: Token
    at: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One of a prompt's sequences was compared with the full model. None: no neuron was removed."""

    prompt: int
    sample: int
    comparison: Comparison | None


Event = Read | Made | Compared


@dataclass(eq=False)
class Job:
    """One request's prompts. Times are seconds of ``time.monotonic``.

    asks: read by the worker's thread and the event loop; neither changes it.
    started: when a worker took the job.
    answered: the client has everything it needs, even if the engine still runs.
    mailbox: receives the events from the worker's thread.
    """

    asks: tuple[Ask, ...]
    arrived: float
    deadline: float
    request_id: str = ""
    started: float | None = None
    answered: bool = False
    mailbox: Mailbox[Event] = field(default_factory=Mailbox)
    # Sequences (prompt, sample) that need no further token.
    _ended: set[tuple[int, int]] = field(default_factory=set)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _timer: asyncio.TimerHandle | None = None

    def end(self, prompt: int, sample: int) -> None:
        """One sequence is complete because its text has reached a stop string."""
        self._ended.add((prompt, sample))

    def cancel(self) -> None:
        """Cancel the job. A running engine notices it within one token or prompt chunk."""
        self._cancelled.set()
        self.mailbox.post(None)

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def complete(self) -> bool:
        """Whether the client got everything; False for a cancelled job."""
        return self.answered or not self.cancelled()

    def watch_deadline(self, expire: Callable[["Job"], None]) -> None:
        """Call ``expire`` at the deadline, on the event loop, because the engine may be inside a long computation."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self.deadline - time.monotonic()), expire, self)

    def forget_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def run(self, engine: EngineLike) -> None:
        """Run all prompts one after the other, on the worker's thread."""
        for prompt, ask in enumerate(self.asks):
            with engine.read(ask.prompt_ids, ask.pruning, ask.scoring, self.cancelled) as read:
                self.mailbox.post(_event(prompt, read))
                for sample, sampling in enumerate(ask.samplings):
                    ids = self._generate(read, prompt, sample, sampling, ask.verification)
                    if ask.compare and not self.cancelled():
                        self.mailbox.post(Compared(prompt, sample, read.compare(ids, self.cancelled)))

    def _generate(
        self, read: PromptLike, prompt: int, sample: int, sampling: Sampling, verification: Verification
    ) -> list[int]:
        ids, over = [], partial(self._over, (prompt, sample))
        for token in read.generate(sampling, over, verification):
            self.mailbox.post(Made(prompt, sample, token, time.monotonic()))
            ids.append(token.id)
            self._wait_for_reader()
        return ids

    def _over(self, key: tuple[int, int]) -> bool:
        return self._cancelled.is_set() or key in self._ended

    def _wait_for_reader(self) -> None:
        """Wait while too many events are unread; cancel the job if its reader takes none for too long."""
        unread, since = self.mailbox.unread, time.monotonic()
        while self.mailbox.unread > UNREAD and not self._cancelled.wait(READER_PAUSE_S):
            if self.mailbox.unread < unread:
                unread, since = self.mailbox.unread, time.monotonic()
            elif time.monotonic() - since > LONGEST_STALL_S:
                self.mailbox.post(RequestTimeout(f"nothing of the answer was read for {LONGEST_STALL_S:g} s"))
                self.cancel()


def _event(prompt: int, read: PromptLike) -> Read:
    """The event for a prompt that was read."""
    return Read(
        prompt,
        read.scores,
        read.selection,
        read.cached_tokens,
        read.pruning,
        read.outlook,
        cached_in_files=read.cached_in_files,
    )
