"""Notice that a client leaves while nothing is sent to it."""

import asyncio
from contextlib import suppress

from fastapi import Request

# Seconds between two checks for a disconnect that uvicorn may have missed.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 8.0


async def disconnected(request: Request) -> None:
    """Return when the client has left. Only streams hear of it from the framework, and not in all versions."""
    patience_s = FIRST_LOOK_S
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if (await request.receive())["type"] == "http.disconnect":
                    return
        # When bytes follow a request, uvicorn stops reading and misses the disconnect. Asking again makes it read on.
        # Ask seldom: uvicorn keeps what it reads.
        patience_s = min(2 * patience_s, LONGEST_LOOK_S)
