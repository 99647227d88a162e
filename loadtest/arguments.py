"""The command line: every flag, its default and its meaning."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import kinds
from loadtest.errors import LoadTestError
from loadtest.objective import MEANINGS, STREAMED, Objective
from loadtest.plots import missing
from loadtest.prompts import Prompt, read_prompts, require_endpoint
from loadtest.sample import label
from loadtest.target import PATHS, Endpoint

DESCRIPTION = """\
Load an OpenAI-compatible server over HTTP and say how fast it answers, by sparsity.

Sparsities take turns, request by request, so that all see the same state of the machine. By default requests arrive
at random, --rate a second, whether or not earlier ones were answered, and latencies count from when a request was due
(open loop); --concurrency N has N users instead, who each wait for an answer before they ask again (closed loop).
A table and, as the last line, one JSON object go to stdout; all else goes to stderr.
"""
EXAMPLES = """\
examples:
  python -m loadtest                                     dense beside half the neurons, 10 requests each
  python -m loadtest --concurrency 1 --requests 50       one user, without any queue
  python -m loadtest --rate 2 --duration 60 --objective ttft=500 tpot=50 --html report.html
  python -m loadtest --url http://host:8001 --no-griffin another server, as any OpenAI client would ask it

exit codes: 0 something was answered; 1 nothing was, or the load could not start; 2 a flag is wrong;
            130 and 143 stopped by Ctrl-C or SIGTERM, after printing what there was
"""
DEFAULT_RATE, DEFAULT_REQUESTS = 0.5, 10


@dataclass(frozen=True, slots=True)
class Options:
    """All that was asked for, valid. Exactly one of ``rate`` and ``concurrency`` is set.

    sparsities: (None,) sends no such field.
    prompts: from a file; None builds them of ``prompt_tokens`` tokens.
    """

    url: str
    endpoint: Endpoint
    model: str | None
    api_key: str | None
    timeout_s: float
    rate: float | None
    concurrency: int | None
    requests: int | None
    duration_s: float | None
    warmup: int
    sparsities: tuple[float | None, ...]
    prompt_tokens: int
    prompts: tuple[Prompt, ...] | None
    shared_prefix: bool
    max_tokens: int
    temperature: float
    seed: int
    ignore_eos: bool
    stream: bool
    overrides: dict[str, Any]
    objective: Objective | None
    json: Path | None
    html: Path | None
    # The command as it was given, without its key.
    command: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    """Exits with code 2 and one line if they are wrong."""
    parser = _parser()
    found = parser.parse_args(arguments)
    try:
        return _options(found, _without_key(arguments))
    except LoadTestError as error:
        parser.error(str(error))


def _options(found: argparse.Namespace, command: tuple[str, ...]) -> Options:
    sparsities = (None,) if found.no_griffin else tuple(found.sparsities or (0.0, 0.5))
    names = [label(sparsity) for sparsity in sparsities]
    if len(set(names)) < len(names):
        raise LoadTestError(f"argument --sparsities: {next(n for n in names if names.count(n) > 1)} is named twice")
    limited = {name for name, _ in found.objective or ()}
    if not found.stream and limited.intersection(STREAMED):
        raise LoadTestError(f"argument --objective: {min(limited.intersection(STREAMED))} needs a stream")
    if len(limited) < len(found.objective or ()):
        raise LoadTestError("argument --objective: the same limit is given twice")
    if found.html and (reason := missing()):
        raise LoadTestError(f"argument --html: {reason}")
    if found.json and found.json == found.html:
        raise LoadTestError("argument --html: the same file as --json")
    prompts = None
    if found.prompts:
        try:
            prompts = tuple(read_prompts(found.prompts))
            require_endpoint(prompts, found.endpoint)
        except LoadTestError as error:
            raise LoadTestError(f"argument --prompts: {error}") from None
    open_loop = found.concurrency is None
    return Options(
        url=found.url,
        endpoint=found.endpoint,
        model=found.model,
        api_key=found.api_key_file or found.api_key,
        timeout_s=found.timeout,
        rate=(found.rate or DEFAULT_RATE) if open_loop else None,
        concurrency=found.concurrency,
        requests=DEFAULT_REQUESTS if found.requests is None and found.duration is None else found.requests,
        duration_s=found.duration,
        warmup=found.warmup,
        sparsities=sparsities,
        prompt_tokens=found.prompt_tokens,
        prompts=prompts,
        shared_prefix=found.shared_prefix,
        max_tokens=found.max_tokens,
        temperature=found.temperature,
        seed=found.seed,
        ignore_eos=found.ignore_eos,
        stream=found.stream,
        overrides=found.body,
        objective=Objective(tuple(found.objective)) if found.objective else None,
        json=found.json,
        html=found.html,
        command=command,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--url", type=kinds.url, default="http://127.0.0.1:8000", help="its address (%(default)s)")
    server.add_argument("--endpoint", choices=list(PATHS), default="completions", help="what to ask (%(default)s)")
    server.add_argument("--model", help="name to ask for (the first of /v1/models)")
    key = server.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", type=kinds.key, metavar="FILE", help="holds the key, sent as a bearer token")
    key.add_argument(
        "--api-key", type=kinds.bearer, metavar="KEY", help="the key itself, which other users of this machine can see"
    )
    server.add_argument(
        "--timeout",
        type=kinds.positive,
        default=600.0,
        metavar="S",
        help="seconds until a request is given up (%(default)g)",
    )

    load = parser.add_argument_group("the load")
    loop = load.add_mutually_exclusive_group()
    loop.add_argument(
        "--rate",
        type=kinds.positive,
        metavar="R",
        help=f"open loop: requests a second of all sparsities, Poisson arrivals ({DEFAULT_RATE:g})",
    )
    loop.add_argument(
        "--concurrency", type=kinds.count, metavar="N", help="closed loop: users who wait for their answers"
    )
    load.add_argument(
        "--requests",
        type=kinds.count,
        metavar="N",
        help=f"for each sparsity ({DEFAULT_REQUESTS}, or as many as fit into --duration)",
    )
    load.add_argument(
        "--duration",
        type=kinds.positive,
        metavar="S",
        help="seconds in which requests are sent; those that run are waited for",
    )
    load.add_argument(
        "--warmup",
        type=kinds.whole,
        default=1,
        metavar="N",
        help="requests for each sparsity, one after the other, before any that count (%(default)s)",
    )
    griffin = load.add_mutually_exclusive_group()
    griffin.add_argument(
        "--sparsities",
        type=kinds.sparsity,
        nargs="+",
        metavar="F",
        help="taken in turn, each with the same prompts (0 0.5)",
    )
    griffin.add_argument("--no-griffin", action="store_true", help="send no sparsity: for any other server")
    load.add_argument(
        "--seed", type=kinds.whole, default=0, help="of the arrivals, and sent with each request (%(default)s)"
    )

    asked = parser.add_argument_group("a request")
    asked.add_argument(
        "--prompt-tokens",
        type=kinds.count,
        default=128,
        metavar="N",
        help="length of a built-in prompt, counted by the server's /tokenize if it has one (%(default)s)",
    )
    asked.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='instead: a .txt, one a line, or a .jsonl with {"prompt": "..."} or {"messages": [...]} a line',
    )
    asked.add_argument(
        "--shared-prefix",
        action="store_true",
        help="prompts as they are, which a server's prefix cache may know; else each begins with a number of its own",
    )
    asked.add_argument(
        "--max-tokens", type=kinds.count, default=32, metavar="N", help="generated by each (%(default)s)"
    )
    asked.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for all of them, so that answers are of one length; OpenAI itself refuses the field",
    )
    asked.add_argument("--temperature", type=kinds.natural, default=0.0, metavar="T", help="(%(default)g, greedy)")
    asked.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="token by token; without, only the whole answer is timed",
    )
    asked.add_argument(
        "--body",
        type=kinds.json_object,
        default={},
        metavar="JSON",
        help="fields that are added to each request or replace others; null takes one out",
    )

    result = parser.add_argument_group("the result")
    result.add_argument(
        "--objective",
        type=kinds.limit,
        nargs="+",
        metavar="NAME=MS",
        help=f"what a good answer keeps, in milliseconds, for goodput: {', '.join(MEANINGS)}",
    )
    result.add_argument("--json", type=kinds.file, metavar="FILE", help="the JSON object there too, indented")
    result.add_argument("--html", type=kinds.file, metavar="FILE", help="a page with plots (needs matplotlib)")
    return parser


def _without_key(arguments: Sequence[str]) -> tuple[str, ...]:
    """For the record: a key is nobody else's business."""
    found, hide = [], False
    for argument in arguments:
        found.append("***" if hide else "--api-key=***" if argument.startswith("--api-key=") else argument)
        hide = argument == "--api-key"
    return tuple(found)
