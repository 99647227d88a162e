"""The command ``python -m loadtest``: it makes a load, and prints a table and one line of JSON."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence

from loadtest.arguments import Options, parse
from loadtest.errors import LoadTestError
from loadtest.files import write_whole
from loadtest.record import record
from loadtest.run import Run, run
from loadtest.table import lines, printable

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run the load test.

    Returns:
        The exit code, as --help explains it.
    """
    options = parse(arguments)
    try:
        result = asyncio.run(run(options))
        return report(result, options)
    except LoadTestError as error:
        print(f"loadtest: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("loadtest: stopped; nothing more is reported", file=sys.stderr)
        return INTERRUPTED


def report(result: Run, options: Options) -> int:
    """Print the result and write its files.

    Returns:
        The exit code.

    Raises:
        LoadTestError: a file cannot be written. Standard output is complete by then.
    """
    found = record(result, options)
    _print([*map(printable, lines(found)), json.dumps(found)])
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")
        print(f"figures are in {options.json}", file=sys.stderr)
    if options.html:
        # Only a page needs the library that draws.
        from loadtest.page import page

        print("drawing the page", file=sys.stderr, flush=True)
        write_whole(options.html, page(found, result.samples))
        print(f"the page is {options.html}", file=sys.stderr)
    if result.stopped_by:
        return 128 + result.stopped_by
    return 0 if any(sample.answered for sample in result.samples) else 1


def _print(found: Sequence[str]) -> None:
    try:
        print("\n".join(found), flush=True)
    except BrokenPipeError:
        # The reader has closed the pipe. Python flushes at its end, so give it another target.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
