"""Flags: every flag of the command line, with its default and its meaning."""

import argparse
from pathlib import Path

from loadtest import kinds
from loadtest.objective import MEANINGS
from loadtest.target import PATHS

DESCRIPTION = """\
Load an OpenAI-compatible server over HTTP, and show how fast it answers at each sparsity.

Sparsities take turns, request by request, so that all meet the same state of the machine. By default, requests arrive
at random times, --rate a second, whether or not earlier ones were answered. Latencies count from when a request was due
(open loop). With --concurrency N there are N users instead; each waits for an answer before the next request (closed
loop). A table and, as the last line, one JSON object go to stdout. Everything else goes to stderr.
"""
EXAMPLES = """\
examples:
  python -m loadtest                                     dense beside half the neurons, 10 requests each
  python -m loadtest --concurrency 1 --requests 50       one user, without a queue
  python -m loadtest --rate 2 --duration 60 --objective ttft=500 tpot=50 --html report.html
  python -m loadtest --url http://host:8001 --no-griffin another server, asked as by any OpenAI client

exit codes: 0 at least one answer came; 1 no answer came, or the load could not start; 2 a flag is wrong;
            130 and 143 stopped by Ctrl-C or SIGTERM, after a report of what there was
"""
DEFAULT_RATE, DEFAULT_REQUESTS = 0.5, 10


def parser() -> argparse.ArgumentParser:
    """Knows each flag by itself; ``arguments`` knows which ones exclude each other."""
    found = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_server(found)
    _add_load(found)
    _add_request(found)
    _add_result(found)
    return found


def _add_server(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("the server")
    server.add_argument("--url", type=kinds.url, default="http://127.0.0.1:8000", help="its address (%(default)s)")
    server.add_argument("--endpoint", choices=list(PATHS), default="completions", help="the API to use (%(default)s)")
    server.add_argument("--model", help="name of the model to ask (the first of /v1/models)")
    key = server.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", type=kinds.key, metavar="FILE", help="holds the key, sent as a bearer token")
    key.add_argument(
        "--api-key", type=kinds.bearer, metavar="KEY", help="the key itself, which other users of this machine can see"
    )
    server.add_argument(
        "--timeout", type=kinds.positive, default=600.0, metavar="S",
        help="seconds after which a request is given up (%(default)g)",
    )  # fmt: skip


def _add_load(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("the load")
    loop = load.add_mutually_exclusive_group()
    loop.add_argument(
        "--rate", type=kinds.positive, metavar="R",
        help=f"open loop: requests a second of all sparsities together, with Poisson arrivals ({DEFAULT_RATE:g})",
    )  # fmt: skip
    loop.add_argument(
        "--concurrency", type=kinds.count, metavar="N", help="closed loop: users who wait for their answers"
    )
    load.add_argument(
        "--requests", type=kinds.count, metavar="N",
        help=f"requests for each sparsity ({DEFAULT_REQUESTS}, or as many as fit into --duration)",
    )  # fmt: skip
    load.add_argument(
        "--duration", type=kinds.positive, metavar="S",
        help="seconds in which requests are sent; running ones may end later",
    )  # fmt: skip
    load.add_argument(
        "--warmup", type=kinds.whole, default=1, metavar="N",
        help="requests for each sparsity that run first, one after the other, and do not count (%(default)s)",
    )  # fmt: skip
    griffin = load.add_mutually_exclusive_group()
    griffin.add_argument(
        "--sparsities", type=kinds.sparsity, nargs="+", metavar="F",
        help="sparsities that take turns, each with the same prompts (0 0.5)",
    )  # fmt: skip
    griffin.add_argument("--no-griffin", action="store_true", help="send no sparsity: for any other server")
    load.add_argument(
        "--seed", type=kinds.whole, default=0, help="seed of the arrivals, also sent with each request (%(default)s)"
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("a request")
    asked.add_argument(
        "--prompt-tokens", type=kinds.count, default=128, metavar="N",
        help="length of a built-in prompt, counted by the server's /tokenize if it has one (%(default)s)",
    )  # fmt: skip
    asked.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help='prompts from a file instead: .txt, one a line, or .jsonl with {"prompt": "..."} or {"messages": [...]} a '
        "line",
    )  # fmt: skip
    asked.add_argument(
        "--shared-prefix", action="store_true",
        help="send prompts as they are, so that a prefix cache may know them; otherwise each begins with a number",
    )  # fmt: skip
    asked.add_argument(
        "--max-tokens", type=kinds.count, default=32, metavar="N", help="tokens of each answer (%(default)s)"
    )
    asked.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True,
        help="ask for all --max-tokens, so that all answers have the same length; OpenAI itself refuses the field",
    )  # fmt: skip
    asked.add_argument("--temperature", type=kinds.natural, default=0.0, metavar="T", help="(%(default)g, greedy)")
    asked.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True,
        help="ask for answers token by token; without it only whole answers are timed",
    )  # fmt: skip
    asked.add_argument(
        "--body", type=kinds.json_object, default={}, metavar="JSON",
        help="fields to add to each request; they replace others, and null removes one",
    )  # fmt: skip


def _add_result(parser: argparse.ArgumentParser) -> None:
    result = parser.add_argument_group("the result")
    result.add_argument(
        "--objective", type=kinds.limit, nargs="+", metavar="NAME=MS",
        help=f"limits of a good answer in milliseconds, for goodput: {', '.join(MEANINGS)}",
    )  # fmt: skip
    result.add_argument("--json", type=kinds.file, metavar="FILE", help="also write the JSON object there, indented")
    result.add_argument("--html", type=kinds.file, metavar="FILE", help="write a page with plots (needs matplotlib)")
