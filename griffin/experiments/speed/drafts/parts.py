"""Parts of the experiment: their prompts, their ways and how they are measured. Each returns its rows."""

from collections.abc import Callable
from functools import partial

from griffin import Pruning, Sampling
from griffin.experiments.speed.drafts import equality, first_token, passes, questions
from griffin.experiments.speed.drafts.bench import Bench
from griffin.experiments.speed.drafts.turns import Row, in_turns
from griffin.experiments.speed.drafts.ways import FULL, engine_way, lossless

# Called with a part's rows so far.
Kept = Callable[[list[Row]], None]
PASS_PROMPT = 256
PASS_PROMPTS = 3


def _passes(bench: Bench, kept: Kept) -> list[Row]:
    asked, prompts = bench.arguments, questions.windows(bench.study, PASS_PROMPT, PASS_PROMPTS)
    return passes.measure(bench.study, prompts, bench.prunings(*asked.methods), asked.rounds, kept)


def _edits(bench: Bench, kept: Kept) -> list[Row]:
    prompts = bench.fitting(questions.edits(bench.study, bench.arguments.prompts), bench.arguments.tokens, "--tokens")
    return in_turns(bench.compared(temperature=0.0), prompts, "edits", kept)


def _chats(bench: Bench, kept: Kept) -> list[Row]:
    prompts = bench.fitting(questions.chats(bench.study, bench.arguments.prompts), bench.arguments.tokens, "--tokens")
    # Greedy answers of small models repeat themselves, and n-grams would find that.
    return in_turns(bench.compared(temperature=1.0), prompts, "chats", kept)


def _lossless(bench: Bench, kept: Kept) -> list[Row]:
    """Both kinds of prompts, edits first. ``text`` in a row is the kind."""
    engine, asked, found = bench.study.engine, bench.arguments, list[Row]()
    sampling = Sampling(temperature=0, max_tokens=asked.tokens)
    ways = [
        engine_way(engine, FULL, FULL, Pruning(), None, sampling),
        *lossless(engine, bench.prunings(*asked.methods), sampling),
    ]
    for text, make in (("edits", questions.edits), ("chats", questions.chats)):
        prompts = bench.fitting(make(bench.study, asked.prompts), asked.tokens, "--tokens")
        keep = partial(_kept_after, kept, list(found), text)
        found += _labelled(text, in_turns(ways, prompts, f"lossless, {text}", keep))
    return found


def _kept_after(kept: Kept, before: list[Row], text: str, rows: list[Row]) -> None:
    kept([*before, *_labelled(text, rows)])


def _labelled(text: str, rows: list[Row]) -> list[Row]:
    return [{"text": text, **row} for row in rows]


def _first_token(bench: Bench, kept: Kept) -> list[Row]:
    return first_token.measure(bench.study, bench.peer, bench.prunings("griffin+"), bench.arguments.rounds, kept)


def _equal(bench: Bench, kept: Kept) -> list[Row]:
    asked = bench.arguments
    prompts = bench.fitting(questions.both(bench.study, asked.equal_prompts), asked.equal_tokens, "--equal-tokens")
    return equality.measure(bench.study.engine, prompts, bench.prunings(*asked.methods), asked.equal_tokens, kept)


# The parts, in the order in which they run.
PARTS: dict[str, Callable[[Bench, Kept], list[Row]]] = {
    "passes": _passes,
    "first-token": _first_token,
    "edits": _edits,
    "chats": _chats,
    "lossless": _lossless,
    "equal": _equal,
}
