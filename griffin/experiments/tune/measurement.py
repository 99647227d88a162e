"""Measurement: losses and speeds on a user's prompts, for each prompt length and each sparsity."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from griffin.errors import GriffinError, InvalidRequest
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.study import Study
from griffin.experiments.tune.advice import Cell
from griffin.experiments.tune.losses import Loss, losses
from griffin.experiments.tune.presentation import length_name
from griffin.experiments.tune.prompts import Case
from griffin.experiments.tune.regression import Measured
from griffin.experiments.tune.speedup import measure_speeds

# Prompts of each length that are timed, in turn.
TIMED_PROMPTS = 3

# How many of its last tokens a prompt is cut to; None leaves it whole.
Length = int | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """
    cells: for each length the full model (sparsity 0), then each sparsity.
    losses: one for each prompt, length and sparsity.
    ended: prompts that the full model answers with a single token, the end, at the length of most prompts.
    """

    cells: list[Cell] = field(default_factory=list)
    losses: list[Measured] = field(default_factory=list)
    ended: list[Case] = field(default_factory=list)


def measure(study: Study, cases: Sequence[Case], arguments: argparse.Namespace) -> Measurement:
    """Measure all prompts with the flags of ``tune``.

    Raises:
        GriffinError: no prompt has a continuation to judge.
    """
    found = Measurement()
    groups = by_length(cases, arguments.prompt_lengths)
    most = max(map(len, groups.values()))
    runs = (arguments.rounds + 1) * (len(arguments.sparsities) + 1)
    with Progress(sum(map(len, groups.values())) + len(groups) * runs) as progress:
        for length, group in groups.items():
            judged = _judge(study, length, group, arguments, progress)
            if len(group) == most:
                found.ended[:] = [case for case in group if case not in judged]
            found.losses.extend(
                Measured(case.where, len(case.ids), sparsity, loss)
                for case, own in judged.items()
                for sparsity, loss in own.items()
            )
            if judged:
                found.cells.extend(_cells(study, length, judged, group, arguments, progress))
    if not found.cells:
        raise GriffinError(
            f"--prompts: the model answers each prompt of '{arguments.prompts}' with a single token, the end"
            + chat_hint(cases)
        )
    return found


def left_out(cases: Sequence[Case], ended: Sequence[Case]) -> list[str]:
    """A sentence on prompts that could not be judged, if there are any.

    Args:
        ended: see ``Measurement``.
    """
    repeated = len(cases) - len(set(cases))
    reasons = [
        f"the full model answers {len(ended)} with a single token, the end" if ended else "",
        f"{repeated} {'repeats' if repeated == 1 else 'repeat'} another" if repeated else "",
    ]
    if not (said := ", and ".join(filter(None, reasons))):
        return []
    hint = chat_hint(ended)
    return [f"{len(ended) + repeated} of {len(cases)} prompts could not be judged: {said}{hint}."]


def chat_hint(cases: Sequence[Case]) -> str:
    """What to do about chat prompts that were given as plain texts, for the end of a sentence."""
    return "; chat prompts need .jsonl with messages" if any(case.bare for case in cases) else ""


def require_fit(study: Study, cases: Sequence[Case], lengths: Sequence[Length], tokens: int) -> None:
    """
    Raises:
        ValueError, GriffinError: all prompts are too short, or one is too long; names the flag, or file and line.
    """
    context, longest = study.context_length, max(len(case.ids) for case in cases)
    for length in lengths:
        if length is not None and length + tokens > context:
            raise ValueError(
                f"--prompt-lengths: {length} and --tokens {tokens} do not fit into this model's context of {context}"
            )
    if all(length is not None and length > longest for length in lengths):
        raise ValueError(f"--prompt-lengths: the longest prompt has {longest} tokens; take shorter lengths, or all")
    for case in cases:
        if None in lengths and len(case.ids) + tokens > context:
            raise GriffinError(
                f"{case.where}: the prompt has {len(case.ids)} tokens, which with --tokens {tokens} exceeds this "
                f"model's context of {context}; shorten it, or leave all out of --prompt-lengths"
            )
        ids = [*case.ids, *case.completion]
        try:
            # Only the lowest and the highest id are passed, because the length is checked above.
            study.engine.check([min(ids), max(ids)])
        except InvalidRequest as error:
            raise GriffinError(f"{case.where}: {error}") from None


def by_length(cases: Sequence[Case], lengths: Sequence[Length]) -> dict[Length, list[Case]]:
    """The prompts cut to each length. Too short ones are left out, and equal ones count once."""
    cut = {length: [short for case in cases if (short := case.last(length))] for length in lengths}
    return {length: list(dict.fromkeys(group)) for length, group in cut.items() if group}


def _judge(
    study: Study, length: Length, group: Sequence[Case], arguments: argparse.Namespace, progress: Progress
) -> dict[Case, dict[float, Loss]]:
    """The losses of each prompt by sparsity, without prompts that have no continuation to judge."""
    judged = {}
    for number, case in enumerate(group, start=1):
        progress.begin(f"{length_name(length)}, prompt {number} of {len(group)}")
        settings = arguments.sparsities, arguments.tokens, arguments.temperature, arguments.method
        if found := losses(study, case, *settings):
            judged[case] = found
        progress.advance()
    return judged


def _cells(
    study: Study,
    length: Length,
    judged: Mapping[Case, Mapping[float, Loss]],
    group: Sequence[Case],
    arguments: argparse.Namespace,
    progress: Progress,
) -> list[Cell]:
    """The full model, then each sparsity, on prompts of one length."""
    timed = [case.ids for case in group[:: max(1, len(group) // TIMED_PROMPTS)][:TIMED_PROMPTS]]
    speeds = measure_speeds(
        study.engine, timed, arguments.sparsities, arguments.tokens, arguments.rounds, progress, arguments.method
    )
    any_sparsity = arguments.sparsities[0]
    all_losses = [{0.0: Loss.none(own[any_sparsity].tokens), **own} for own in judged.values()]
    return [Cell.of(length, s, [own[s] for own in all_losses], speed) for s, speed in speeds.items()]
