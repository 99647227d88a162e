"""A client that leaves, noticed while nothing is sent to it."""

import asyncio
from contextlib import suppress

from fastapi import Request

# Between looks for a disconnect that could have gone unseen.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 8.0


async def disconnected(request: Request) -> None:
    """Return when the client has left: the framework tells it to streams only, and not in all versions."""
    patience_s = FIRST_LOOK_S
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if (await request.receive())["type"] == "http.disconnect":
                    return
        # When bytes come after a request, uvicorn stops reading, and then sees no disconnect either. Asking again
        # makes it read on. Seldom: what it reads, it keeps.
        patience_s = min(2 * patience_s, LONGEST_LOOK_S)
