"""Unknown keys of a body are named in the answer and in the log."""

import logging
from typing import Protocol
from urllib.parse import quote

logger = logging.getLogger("griffin")

IGNORED_HEADER = "x-griffin-ignored"
# At most this many keys are named.
HEADER_KEYS = 16


class Body(Protocol):
    """A body that may have unknown keys."""

    def ignored(self) -> list[str]: ...


def ignored_header(body: Body) -> dict[str, str]:
    """The header that names a body's unknown keys; empty if there are none.

    Unknown keys are common and harmless, but a misspelt ``sparsity`` must be noticed.
    """
    names = [quote(name[:64].encode("utf-8", "replace"), safe="/[]") for name in body.ignored()]
    if not names:
        return {}
    listed = ",".join(names[:HEADER_KEYS] + ["..."] * (len(names) > HEADER_KEYS))
    logger.warning("ignored unknown fields: %s", listed)
    return {IGNORED_HEADER: listed}
