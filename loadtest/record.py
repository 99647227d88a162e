"""Record: a run as one object, with everything needed to repeat it. No I/O."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from loadtest.arguments import Options
from loadtest.distribution import distribution
from loadtest.remarks import remarks
from loadtest.reported import applied, reported
from loadtest.run import Run
from loadtest.sample import Sample, label
from loadtest.summary import compared, summarise

# The version of the object's form. Raise it when a field changes its meaning.
SCHEMA = 1


def record(run: Run, options: Options) -> dict[str, Any]:
    """The object that docs/loadtest.md describes."""
    by_sparsity = {label(s): _of_sparsity(run, options, s) for s in options.sparsities}
    client = _client(run, options)
    return {
        "schema": SCHEMA,
        "command": list(options.command),
        "options": _options(options),
        "started_at": run.started_at.isoformat(timespec="seconds"),
        "wall_s": round(run.wall_s, 3),
        "stopped_by": run.stopped_by.name if run.stopped_by else None,
        "nonce": run.nonce,
        "server": {
            "url": run.target.url,
            "model": run.target.model,
            "version": run.target.version,
            "models": list(run.target.models),
        },
        "client": client,
        "totals": _totals(run),
        "by_sparsity": by_sparsity,
        "compared": compared(by_sparsity),
        "remarks": remarks(
            by_sparsity,
            run.samples,
            client,
            prompts_approximate=run.prompts_approximate,
            shared_prefix=options.shared_prefix,
            open_loop=options.rate is not None,
            fixed_length=options.max_tokens if options.ignore_eos else None,
        ),
    }


def of_sparsity(samples: Sequence[Sample], sparsity: float | None) -> list[Sample]:
    """The samples of one sparsity."""
    return [sample for sample in samples if sample.sparsity == sparsity]


def _of_sparsity(run: Run, options: Options, sparsity: float | None) -> dict[str, Any]:
    samples = of_sparsity(run.samples, sparsity)
    return {
        **summarise(samples, run.wall_s, options.objective),
        "griffin": applied(samples),
        "server_reported": reported(samples),
    }


def _client(run: Run, options: Options) -> dict[str, Any]:
    """How late and how busy the client was, and its versions."""
    lags = [sample.sent_s - sample.due_s for sample in run.samples] if options.rate is not None else []
    return {
        "schedule_lag_ms": distribution(lags, 1e3),
        "cpu_share": round(run.cpu_s / run.wall_s, 3) if run.wall_s else 0.0,
        "loadtest": version("griffin-server"),
        "httpx": version("httpx"),
        "python": platform.python_version(),
        "machine": platform.platform(),
    }


def _totals(run: Run) -> dict[str, Any]:
    found = summarise(run.samples, run.wall_s)
    names = ("requests", "answered", "unfinished", "errors", "tokens", "requests_per_second",
             "throughput_tokens_per_second")  # fmt: skip
    return {name: found[name] for name in names}


def _options(options: Options) -> dict[str, Any]:
    """The options by the names of flags, without the key. Prompts of a file are given as their number."""
    found = asdict(options)
    for name in ("command", "api_key", "url", "json", "html"):
        del found[name]
    for field, flag in (("timeout_s", "timeout"), ("duration_s", "duration"), ("overrides", "body")):
        found[flag] = found.pop(field)
    found["prompts"] = None if options.prompts is None else len(options.prompts)
    found["objective"] = dict(options.objective.limits_ms) if options.objective else None
    return found
