"""Arguments: the command line becomes options, or one line that says what is wrong."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.flags import DEFAULT_RATE, DEFAULT_REQUESTS, parser
from loadtest.objective import STREAMED, Objective
from loadtest.plots import missing
from loadtest.prompts import Prompt, read_prompts, require_endpoint
from loadtest.sample import label
from loadtest.target import Endpoint


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for, checked. Exactly one of ``rate`` and ``concurrency`` is set.

    sparsities: (None,) sends no such field.
    prompts: those of a file; None: they are built, of ``prompt_tokens`` tokens.
    command: the arguments as given, without the key.
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
    command: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    """The options. If an argument is wrong, exit with code 2 and say what is wrong."""
    flags = parser()
    found = flags.parse_args(arguments)
    try:
        _require_consistent(found)
        return _options(found, _without_key(arguments))
    except LoadTestError as error:
        flags.error(str(error))


def _require_consistent(found: argparse.Namespace) -> None:
    """
    Raises:
        LoadTestError: two flags cannot go together, or a value is there twice; names the flag.
    """
    names = [label(sparsity) for sparsity in _sparsities(found)]
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


def _sparsities(found: argparse.Namespace) -> tuple[float | None, ...]:
    return (None,) if found.no_griffin else tuple(found.sparsities or (0.0, 0.5))


def _prompts(found: argparse.Namespace) -> tuple[Prompt, ...] | None:
    if not found.prompts:
        return None
    try:
        prompts = tuple(read_prompts(found.prompts))
        require_endpoint(prompts, found.endpoint)
    except LoadTestError as error:
        raise LoadTestError(f"argument --prompts: {error}") from None
    return prompts


def _options(found: argparse.Namespace, command: tuple[str, ...]) -> Options:
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
        sparsities=_sparsities(found),
        prompt_tokens=found.prompt_tokens,
        prompts=_prompts(found),
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


def _without_key(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments for the record, with *** for the key."""
    found, hide = [], False
    for argument in arguments:
        found.append("***" if hide else "--api-key=***" if argument.startswith("--api-key=") else argument)
        hide = argument == "--api-key"
    return tuple(found)
