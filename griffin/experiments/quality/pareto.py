"""Quality against bytes a token: the paper's method, griffin+, and smaller quants of the same file.

The full model reads a prompt, and each contestant predicts the tokens after it, teacher-forced. Three figures count:
the negative log-likelihood above the full model's (excess nats), the KL divergence from its distributions, and how
often both find the same token most probable. Bytes a token are the weights that these tokens have read.

The text is the test split of WikiText-2, or a file of your own (--text). Make smaller quants with llama.cpp's
quantiser, from the file of --model, and name them by --quants; all their weights are read. The methods (not the quants)
also answer lm-eval's tasks, as in 'classification' and 'generation', and two more: HumanEval, whose answers run in a
sandbox, and word problems.

examples:
  python -m griffin.experiments pareto --quick
  python -m griffin.experiments pareto --model model-Q4_K_M.gguf --quants model-Q3_K_M.gguf model-Q2_K.gguf
  python -m griffin.experiments pareto --data data --windows 1 --sparsities 0.25 0.5 --tasks humaneval arithmetic

Shapes: W windows.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import COLOURS, INK, MUTED, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import read_own_text, read_text
from griffin.experiments.common.variants import FULL, Variant, griffin, plus
from griffin.experiments.quality.closeness import Passage, closeness, row_of
from griffin.experiments.quality.readers import FULL_MODEL, METHOD, QUANT, QuantReader, Reader, VariantReader
from griffin.experiments.tasks.names import CLASSIFICATION, GENERATION, REASONING
from griffin.experiments.tasks.scores import (
    TITLES,
    add_task_arguments,
    measure_tasks,
    relative,
    relative_error,
    score_table,
)
from griffin.request import METHOD_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Quality against bytes a token"
SEE = (
    "If one line is below another, it loses less with the same number of bytes. In the panels of tasks, the grey band "
    "is one standard error of the full model's score."
)
QUICK = {"windows": 3, "sparsities": [0.5], "limit": 5}
SPARSITIES = [0.25, 0.5, 0.75]
TASKS = ["arc_easy", "coqa"]
PAPERS, OURS = METHOD_NAMES
# The goals: the largest excess loss of griffin+ at a sparsity, as a fraction of the excess loss of the paper's method.
MOST_EXCESS = {0.25: 0.1, 0.5: 0.35}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds.add_sparsities(parser, SPARSITIES, "0.25 0.5 0.75")
    parser.add_argument("--text", type=kinds.file, metavar="FILE", help="plain text to read in place of WikiText-2")
    parser.add_argument("--prompt", type=kinds.count, default=384, help="tokens of the prompt (%(default)s)")
    parser.add_argument("--generated", type=kinds.count, default=128, help="tokens after it (%(default)s)")
    parser.add_argument("--windows", type=kinds.count, default=24, help="places in the text (%(default)s)")
    parser.add_argument(
        "--quants", type=kinds.file, nargs="+", metavar="FILE", default=[],
        help="GGUF files of the same model with fewer bits a weight, to compare with (none)",
    )  # fmt: skip
    parser.add_argument("--no-tasks", action="store_true", help="text only, no tasks")
    add_task_arguments(parser, CLASSIFICATION + GENERATION + REASONING, TASKS)


def variants_at(sparsity: float) -> list[Variant]:
    """Each method."""
    return [griffin(sparsity).renamed(PAPERS), plus(sparsity)]


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``rows``: the full model, each method at each sparsity and each quant, see ``closeness.row_of``.
        ``tasks``, ``scores``: see ``evaluation.evaluate``.

    Raises:
        GriffinError: a text or a quant cannot be read, or does not fit the model.
        ValueError: the lengths exceed the context or the text; names the flags.
    """
    sparsities = kinds.removing(arguments.sparsities)
    length = arguments.prompt + arguments.generated
    if length > study.context_length:
        raise ValueError(f"--prompt, --generated: {length} tokens, but the context has {study.context_length}")
    text = read_text(study, "wikitext") if arguments.text is None else read_own_text(study, arguments.text)
    # One more token than is read, because the last token that is read predicts it.
    windows = text.windows(length + 1, arguments.windows, "--generated", "--windows")
    variants = [FULL, *[variant for sparsity in sparsities for variant in variants_at(sparsity)]]
    readers: list[Reader] = [VariantReader(study, variant) for variant in variants]
    readers += [QuantReader.open(study, file, arguments) for file in arguments.quants]
    answers: list[list[dict[str, float]]] = [[] for _ in readers]
    with Progress(len(windows) * len(readers)) as progress:
        for place, window in enumerate(windows, start=1):
            passage = Passage(study.teacher, text.begun(window[: arguments.prompt]), window[arguments.prompt :])
            for own, reader in zip(answers, readers, strict=True):
                progress.begin(f"window {place} of {len(windows)}, {reader.name} {percent(reader.sparsity)}")
                question = {"closeness": passage.name, "reader": reader.question()}
                own.append(study.ledger.once(question, partial(closeness, passage, reader)))
                progress.advance()
    return {
        "text": text.corpus,
        "prompt": arguments.prompt,
        "generated": arguments.generated,
        "windows": len(windows),
        "sparsities": sparsities,
        "rows": [row_of(reader, own) for reader, own in zip(readers, answers, strict=True)],
        **_tasks(study, arguments, sparsities),
    }


def _tasks(study: Study, arguments: argparse.Namespace, sparsities: Sequence[float]) -> dict[str, Any]:
    if arguments.no_tasks:
        return {"tasks": {}, "scores": {}}
    pruned = [variant for sparsity in sparsities for variant in variants_at(sparsity)]
    variants = [FULL, *[variant.renamed(f"{variant.name} {percent(variant.sparsity)}") for variant in pruned]]
    return measure_tasks(study, arguments, variants)


def _of_kind(found: Found, kind: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["kind"] == kind]


def by_method(found: Found, name: str, sparsity: float) -> dict[str, Any]:
    """The row of a method at a sparsity."""
    return next(row for row in _of_kind(found, METHOD) if (row["name"], row["sparsity"]) == (name, sparsity))


def excess(found: Found, row: Found) -> Tensor:
    """The excess loss of each window over the full model: fp64 ``(W,)``."""
    (full,) = _of_kind(found, FULL_MODEL)
    own_W, full_W = (torch.tensor(each["windows"]["loss"], dtype=torch.float64) for each in (row, full))
    return own_W - full_W


def relative_excess(found: Found, name: str, sparsity: float) -> tuple[float, float]:
    """The mean excess divided by that of the paper's method, and the ratio's standard error over paired windows."""
    own_W, paper_W = (excess(found, by_method(found, each, sparsity)) for each in (name, PAPERS))
    ratio = float(own_W.mean() / paper_W.mean())
    return ratio, float(_error(own_W - ratio * paper_W) / paper_W.mean())


def _error(values_W: Tensor) -> float:
    """The standard error of a mean; NaN if there is only one value."""
    return float(values_W.std() / math.sqrt(len(values_W))) if len(values_W) > 1 else math.nan


def tables(found: Found) -> list[Table]:
    ordered = sorted(found["rows"], key=lambda row: -float(row["bytes"]))
    heads = ["", "sparsity", "MB a token", "active", "excess nats", f"of {PAPERS}'s", "KL", "same token"]
    caption = (
        f"{found['generated']} tokens after each of {found['windows']} prompts of {found['prompt']} tokens of "
        f"{found['text']}. Excess: negative log-likelihood above the full model's; ± is one standard error over "
        "windows. KL(full || row) is in nats a token. Same token: how often both find the same token most probable. MB "
        "a token: the weights that a token reads; a quant reads all of its file."
    )
    scored = [score_table(found, "Scores in %. ± is one standard error.")] if found["tasks"] else []
    multiple_choice = [task for task, facts in found["tasks"].items() if facts["chance"] is not None]
    text = Table(heads, [_cells(found, row) for row in ordered], caption)
    return [text, *scored, *[_answers(found, task) for task in multiple_choice]]


def _cells(found: Found, row: Found) -> list[str]:
    excess_W, is_full, ratio = excess(found, row), row["kind"] == FULL_MODEL, "-"
    if row["kind"] == METHOD:
        ratio = _with_error(*relative_excess(found, row["name"], row["sparsity"]), digits=2)
    return [
        row["name"],
        percent(row["sparsity"]) if row["sparsity"] else "-",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['active'] / 1e6:.1f} M",
        "-" if is_full else _with_error(float(excess_W.mean()), _error(excess_W), digits=3),
        ratio,
        "-" if is_full else f"{row['kl']:.4f}",
        "-" if is_full else percent(row["same"], 1),
    ]


def _with_error(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _answers(found: Found, task: str) -> Table:
    """The likelihood of the right answers. It shows smaller differences than the number of answers that win."""
    rows = []
    for name in METHOD_NAMES:
        own = [found["scores"][task][f"{name} {percent(sparsity)}"] for sparsity in found["sparsities"]]
        rows.append([name, *[f"{scores['excess']:.3f} ± {scores['excess_stderr']:.3f}" for scores in own]])
    caption = f"Negative log-likelihood of {TITLES[task]}'s right answers above the full model's, in nats."
    return Table(["", *[percent(sparsity) for sparsity in found["sparsities"]]], rows, caption)


def draw(found: Found) -> "Figure":
    """Panels of the text on the left and of the tasks on the right, over the bytes that a token reads."""
    figure = new_figure(3.4 * (2 + len(found["tasks"])), 3.4)
    nats, divergence, *others = panels(figure, 1, 2 + len(found["tasks"]))
    for name, colour in zip((*METHOD_NAMES, "smaller quants"), COLOURS, strict=False):
        rows = _of_kind(found, METHOD) if name in METHOD_NAMES else _of_kind(found, QUANT)
        own = sorted((row for row in rows if row["kind"] == QUANT or row["name"] == name), key=lambda row: row["bytes"])
        if not own:
            continue
        places = [row["bytes"] / 1e6 for row in own]
        line: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.8, "color": colour, "label": name}
        nats.plot(places, [float(excess(found, row).mean()) for row in own], **line)
        divergence.plot(places, [row["kl"] for row in own], **line)
        for task, beside in zip(found["tasks"], others, strict=True):
            if own[0]["kind"] == METHOD:
                beside.plot(
                    places, [relative(found, task, f"{name} {percent(row['sparsity'])}") for row in own], **line
                )
    nats.set_ylabel("excess negative log-likelihood, nats")
    divergence.set_ylabel("KL to the full model, nats a token")
    for axes in (nats, divergence):
        axes.set_title(found["text"])
    nats.legend(frameon=False, labelcolor=INK, fontsize=7)
    for task, beside in zip(found["tasks"], others, strict=True):
        error = relative_error(found, task)
        beside.axhline(1, color=MUTED, linewidth=1)
        beside.axhspan(1 - error, 1 + error, color=MUTED, alpha=0.15, linewidth=0)
        beside.set_title(TITLES[task])
        beside.set_ylabel("score / full model's")
    for axes in (nats, divergence, *others):
        axes.set_xlabel("MB of weights a token")
        axes.set_ylim(bottom=0)
    return figure


def claims(found: Found) -> list[Claim]:
    measured = [sparsity for sparsity in found["sparsities"] if sparsity in MOST_EXCESS]
    judged = [_of_excess(found, sparsity) for sparsity in measured]
    return judged + [claim for quant in _of_kind(found, QUANT) for claim in _of_quant(found, quant)]


def _of_excess(found: Found, sparsity: float) -> Claim:
    most, (ratio, error) = MOST_EXCESS[sparsity], relative_excess(found, OURS, sparsity)
    ours, papers = (by_method(found, name, sparsity)["bytes"] / 1e6 for name in (OURS, PAPERS))
    return Claim(
        f"At {percent(sparsity)}, the excess loss of {OURS} is at most {most:g} of that of the paper's method.",
        _below(ratio - most, error),
        f"It is {ratio:.2f} ± {error:.2f} of that, on {found['windows']} windows of {found['text']}. {OURS} reads "
        f"{ours:.1f} MB a token and the paper's method {papers:.1f} MB.",
    )


def _of_quant(found: Found, quant: Found) -> list[Claim]:
    """Whether griffin+ is closer with no more bytes. The list is empty if griffin+ was not measured with so few."""
    fewer = [row for row in _of_kind(found, METHOD) if row["name"] == OURS and row["bytes"] <= quant["bytes"]]
    if not fewer:
        return []
    ours = max(fewer, key=lambda row: float(row["bytes"]))
    difference_W = torch.tensor(ours["windows"]["kl"]) - torch.tensor(quant["windows"]["kl"])
    difference = float(difference_W.mean())
    return [
        Claim(
            f"{OURS} is closer to the full model than {quant['name']}, with no more bytes a token.",
            _below(difference, _error(difference_W)),
            f"{OURS} has a KL of {ours['kl']:.4f} with {ours['bytes'] / 1e6:.1f} MB at {percent(ours['sparsity'])}, "
            f"and {quant['name']} has {quant['kl']:.4f} with {quant['bytes'] / 1e6:.1f} MB.",
        )
    ]


def _below(difference: float, error: float) -> bool | None:
    """Whether a difference is below 0; None if it is within two standard errors of 0, or its error is unknown."""
    return difference < 0 if abs(difference) >= 2 * error else None
