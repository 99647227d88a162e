"""Help texts are read in a hurry: they have no long sentence."""

import argparse
import re
from collections.abc import Iterator

import pytest

from griffin.__main__ import command_line as product
from griffin.experiments.__main__ import command_line as experiments
from loadtest.flags import parser as load
from server.commandline.parser import parser as serve
from server.protocol.options import GriffinOptions
from server.protocol.request import GenerationRequest
from server.settings import Settings

MOST_WORDS = 25


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and the parsers of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The paragraphs of a parser's description, and the help of its flags."""
    yield from (parser.description or "").split("\n\n")
    yield from (action.help or "" for action in parser._actions)


FLAGS = {f"{each.prog} {number}": text for make in (product, experiments, load, serve)
         for each in parsers(make()) for number, text in enumerate(texts(each))}  # fmt: skip
FIELDS = {f"{kind.__name__}.{name}": field.description or ""
          for kind in (Settings, GenerationRequest, GriffinOptions)
          for name, field in kind.model_fields.items()}  # fmt: skip


@pytest.mark.parametrize("text", [text for text in {**FLAGS, **FIELDS}.values() if text])
def test_no_sentence_is_long(text: str) -> None:
    """A sentence ends at a full stop, colon, semicolon or question mark. Each line of a list counts alone."""
    long = [s for s in re.split(r"[.;:?]\s+|\n  ", text) if len(s.split()) > MOST_WORDS]

    assert not long
