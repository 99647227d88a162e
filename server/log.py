"""One line a record: text for people, or JSON for machines. The request's id is in every line of a request."""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["text", "json"]


def configure(level: str, format: LogFormat) -> None:
    """Send everything that any library logs to standard error, in this form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
    ]
    if format == "json":
        tail: list[Processor] = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        tail = [structlog.processors.format_exc_info, _line]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("griffin").setLevel(level.upper())


def _line(_: WrappedLogger, __: str, record: EventDict) -> str:
    """``griffin: message key=value ...``, and a traceback below it."""
    message, exception = record.pop("event"), record.pop("exception", None)
    level = record.pop("level", "info")
    mark = "" if level in ("info", "debug") else f"{level}: "
    pairs = str(structlog.processors.LogfmtRenderer()(None, "", record)) if record else ""
    # A client's path or key may contain characters that move a terminal's cursor or break a line.
    pairs = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in pairs)
    return "\n".join(filter(None, [" ".join(filter(None, [f"griffin: {mark}{message}", pairs])), exception]))
