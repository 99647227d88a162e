"""One model of ``--model``: its names, its memory, and, while it is loaded, what answers."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.served import ServedModel
from server.settings import Settings


@dataclass(eq=False, slots=True)
class Slot:
    """One model of ``--model``.

    settings: as if it were the server's only model.
    names: all that clients may use; empty until the only model of a server is loaded.
    bytes: of memory; those of its files until it was loaded once.
    served: the model, while it is loaded.
    used: when a request last asked for it, in seconds of ``time.monotonic``.
    leaving: it takes no further requests, and is unloaded when its last one has ended.
    takers: requests that wait until it is loaded.
    users: requests that have it and are not in its queue yet.
    broken_until: it could not be loaded, and is not tried before, in seconds of ``time.monotonic``.
    created: in Unix seconds.
    """

    settings: Settings
    names: Sequence[str] = ()
    bytes: int = 0
    served: ServedModel | None = None
    used: float = 0.0
    leaving: bool = False
    takers: int = 0
    users: int = 0
    broken_until: float = 0.0
    coming: "asyncio.Task[None] | None" = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """In metrics and messages."""
        return self.names[0] if self.names else self.settings.model

    @property
    def available(self) -> bool:
        return self.served is not None and not self.leaving

    @property
    def idle(self) -> bool:
        return self.served is None or self.served.workers.queue.idle

    def running(self) -> int:
        return 0 if self.served is None else self.served.workers.queue.running

    def waiting(self) -> int:
        return self.takers + (0 if self.served is None else self.served.workers.queue.waiting)
