"""The parser of the command line: a flag for each setting, its help, and what is said of unknown flags."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from server.commandline.elsewhere import FLAGS
from server.commandline.words import short
from server.settings import EMPTY, Settings, SettingsInvalid

ABOUT = """\
An OpenAI-compatible server. Each request may leave out feed-forward weights: its sparsity (GRIFFIN).
Every flag is an environment variable too: --prefill-chunk is GRIFFIN_PREFILL_CHUNK. A flag wins."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsInvalid(message.removeprefix("argument "))


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The values of the flags by the settings' names. Of a repeated flag the last counts; --model is a line each.

    Raises:
        SettingsInvalid: a flag is unknown, or its value is missing or empty; says what to write instead.
        SystemExit: help was asked for, and printed.
    """
    # Before the parser, which takes -hf for -h.
    for argument in arguments:
        if (flag := argument.partition("=")[0]) in FLAGS:
            raise SettingsInvalid(f"{flag} is unknown; {FLAGS[flag]}")
    found, unknown = parser().parse_known_args(arguments)
    if unknown:
        raise SettingsInvalid(_unknown(unknown[0]))
    values: dict[str, list[str]] = vars(found)
    # An empty variable counts as absent. But a flag was written by somebody who meant something.
    if empty := next((name for name, given in values.items() if not all(map(str.strip, given))), None):
        raise SettingsInvalid(f"{flag_of(empty)}: {EMPTY}")
    return {name: "\n".join(given) if name == "model" else given[-1] for name, given in values.items()}


def parser() -> argparse.ArgumentParser:
    """A flag for each setting. Its values are a list of texts; a missing flag has none."""
    made = _Parser(
        prog="python -m server",
        usage="python -m server [--FLAG VALUE ...]",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name in Settings.model_fields:
        made.add_argument(flag_of(name), dest=name, action="append", metavar=short(name), help=_help(name))
    return made


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _help(name: str) -> str:
    field = Settings.model_fields[name]
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    text = f"{field.description}" + ("" if default is None else f" (default: {default})")
    return text.replace("%", "%%")


def _unknown(argument: str) -> str:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return f"'{argument}' follows no flag; a model is named by --model"
    near = get_close_matches(flag, map(flag_of, Settings.model_fields), n=1)
    return f"{flag} is unknown" + (f"; did you mean {near[0]}?" if near else "")
