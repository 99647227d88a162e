"""Lengths: how many prompt tokens and generated tokens one timed sequence has."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial

from griffin.experiments.common.kinds import count, whole

# (prompt tokens, generated tokens).
Lengths = tuple[int, int]

DEFAULTS = {"prompt_tokens": 256, "tokens": 48, "rounds": 5}
SHORT = {"prompt_tokens": 64, "tokens": 16, "rounds": 2}
# The time of a token is taken from the second token to the last: two tokens have no such time.
SMALLEST_TOKENS = 3

token_count = partial(whole, lowest=SMALLEST_TOKENS)


def lengths(text: str) -> Lengths:
    """The type of a flag: ``P+G``."""
    prompt_tokens, plus, tokens = text.partition("+")
    if not plus:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form P+G, as 2048+128")
    return count(prompt_tokens), token_count(tokens)


def asked_for(arguments: argparse.Namespace) -> tuple[list[Lengths], int]:
    """All lengths to time, and the number of rounds. A flag that was not given has its default.

    Raises:
        ValueError: the lengths are given in two ways.
    """
    defaults: Mapping[str, int] = SHORT if arguments.quick else DEFAULTS
    if arguments.lengths and (arguments.prompt_tokens or arguments.tokens):
        raise ValueError("--lengths: cannot go with --prompt-tokens or --tokens, which say the same")
    single = (arguments.prompt_tokens or defaults["prompt_tokens"], arguments.tokens or defaults["tokens"])
    return arguments.lengths or [single], arguments.rounds or defaults["rounds"]


def require_context(asked: Sequence[Lengths], context: int) -> None:
    """
    Raises:
        ValueError: some lengths exceed the model's context.
    """
    for prompt_tokens, tokens in asked:
        if prompt_tokens + tokens > context:
            raise ValueError(
                f"--prompt-tokens, --tokens, --lengths: {prompt_tokens}+{tokens} tokens do not fit into this model's "
                f"context of {context}"
            )
