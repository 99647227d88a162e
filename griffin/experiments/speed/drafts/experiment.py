"""How much drafts and passes over several tokens help: speed, equal answers, and the time to the first token.

The parts (--parts), each with its own tables:
  passes       a pass of 1, 2, 4, 8 and 16 tokens in units of a step, after prompts of 256 tokens
  edits        functions of HumanEval, with one parameter to rename and a docstring to add: with drafts and without
  chats        free text without repetition, sampled at temperature 1: with drafts and without
  lossless     drafts of kept neurons, checked by the full model, beside the full model alone
  first-token  the time to the first token of prompts of 8, 27, 64 and 128 tokens
  equal        whether answers with drafts equal those without, and lossless answers those of sparsity 0

All ways take turns in one run, and figures are medians. With --llama-cpp, llama.cpp answers the same prompts greedily,
with its own prompt lookup and without. Until a run ends, its figures are in drafts-so-far.json and .txt.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.llama import add_llama_cpp_arguments, described
from griffin.experiments.common.results import Claim, Table, write_json, write_whole
from griffin.experiments.common.study import Study
from griffin.experiments.speed.drafts import equality, first_token, goals, passes, turns
from griffin.experiments.speed.drafts.bench import Bench, open_peer
from griffin.experiments.speed.drafts.parts import PARTS, PASS_PROMPT
from griffin.experiments.speed.drafts.ways import FULL
from griffin.request import METHOD_NAMES

TITLE = "Drafts and passes over several tokens"
SEE = "With drafts, edits should be faster, free text should not be slower, and no token should change."
QUICK = {"prompts": 3, "tokens": 32, "rounds": 3, "equal_prompts": 4, "equal_tokens": 32}
# No picture: all figures are in tables.
draw = None
# The columns of ``turns.table``. ``base`` is the way that the others are compared with.
ABOUT = (
    "tokens/s: from the first token to the last, median of the prompts. x {base}: the speed-up over {base} on the same "
    "prompt, median and range. accepted: drafts that stayed. as {base}: answers with the same tokens."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what to measure (all)")
    parser.add_argument(
        "--prompts", type=kinds.count, default=30, help="prompts of edits, and of chats (%(default)s each)"
    )
    parser.add_argument("--tokens", type=kinds.count, default=192, help="most tokens of each answer (%(default)s)")
    parser.add_argument(
        "--sparsity", type=kinds.sparsity, default=0.5, metavar="S",
        help="sparsity of pruned runs, above 0 and below 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", choices=METHOD_NAMES, nargs="+", default=list(METHOD_NAMES),
        help="methods in passes, lossless and equal; other parts use griffin+ (all)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=kinds.count, default=9, help="rounds of passes and first-token (%(default)s)")
    parser.add_argument(
        "--equal-prompts", type=kinds.count, default=100, help="prompts of equal, both kinds together (%(default)s)"
    )
    parser.add_argument(
        "--equal-tokens", type=kinds.count, default=128, help="tokens of each answer in equal (%(default)s)"
    )
    parser.add_argument(
        "--lookups", type=kinds.count, nargs="+", default=[2, 10], metavar="N",
        help="most drafts in a pass of llama.cpp's prompt lookup (2 10: its advice for CPUs, and its default)",
    )  # fmt: skip
    add_llama_cpp_arguments(parser)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        The rows of each part. The ledger keeps no times.

    Raises:
        GriffinError: data or llama.cpp are missing (see the flags), or the model has no chat template.
        ValueError: a flag asks for more prompts or tokens than there are; names the flag.
    """
    if not arguments.sparsity:
        raise ValueError("--sparsity: 0 is the full model, which always runs; name another")
    with ExitStack() as stack:
        peer = stack.enter_context(open_peer(study, arguments)) if arguments.llama_cpp else None
        bench = Bench(study, arguments, peer)
        found: Found = {
            "prompts": arguments.prompts,
            "tokens": arguments.tokens,
            "sparsity": arguments.sparsity,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
            "llama_cpp": None if peer is None else {"file": peer.file.name, **peer.facts},
        }
        for name in (each for each in PARTS if each in arguments.parts):
            found[name] = PARTS[name](bench, lambda rows: _write(study, {**found, name: rows}))  # noqa: B023
        found["step"] = study.engine.step
    for path in _so_far(study):
        path.unlink(missing_ok=True)
    return found


def _so_far(study: Study) -> tuple[Path, Path]:
    return study.folder / "drafts-so-far.json", study.folder / "drafts-so-far.txt"


def _write(study: Study, found: Found) -> None:
    """Keep the figures of a run that has not ended."""
    figures, text = _so_far(study)
    write_json(figures, found)
    write_whole(text, "\n\n".join(table.text() for table in tables(found)) + "\n")


def tables(found: Found) -> list[Table]:
    shown = [table for name in PARTS if name in found for table in _tables(name, found)]
    judged = claims(found)
    words = {True: "yes", False: "no", None: "unsure"}
    goal_rows = [(each.paper, words[each.holds], each.here) for each in judged]
    peer = f" {described(found['llama_cpp'])}." if found["llama_cpp"] else ""
    return [*shown, Table(("goal", "held", "here"), goal_rows, f"goals.{peer}", words=3)]


def _tables(name: str, found: Found) -> list[Table]:
    rows = found[name]
    if name == "passes":
        caption = (
            f"passes: after prompts of {PASS_PROMPT} tokens, in units of a step. A step also draws its token, a pass "
            "does not."
        )
        return [passes.table(rows, caption)]
    if name == "first-token":
        return [first_token.table(rows, "first-token: median times from the prompt's arrival.")]
    if name == "equal":
        return [equality.table(rows, "equal: all answers have the same length; half are edits, half are chats.")]
    if name == "lossless":
        return [
            turns.table([row for row in rows if row["text"] == text], _about(f"lossless, {text}: greedy", FULL), FULL)
            for text in dict.fromkeys(row["text"] for row in rows)
        ]
    drawn = "greedy" if name == "edits" else "sampled at temperature 1; llama.cpp greedy"
    return [turns.table(rows, _about(f"{name}: {drawn}", "without"), "without")]


def _about(what: str, base: str) -> str:
    return f"{what}. {ABOUT.format(base=base)}"


def claims(found: Found) -> list[Claim]:
    return goals.claims(found)
