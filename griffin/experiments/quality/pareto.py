"""Quality against active parameters: the paper's method, griffin+, and each part of griffin+ alone and left out.

On text (WikiText-2, test) the figure is the excess negative log-likelihood over the full model, teacher-forced after a
prompt that the full model reads. On tasks it is lm-eval's score, as in ``classification`` and ``generation``; there no
part is left out. Calibrate the model first (``python -m griffin calibrate``), on other text than this.

Shapes: W windows, V variants.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import torch

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import COLOURS, INK, MUTED, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Acted
from griffin.experiments.common.texts import read_text
from griffin.experiments.common.variants import FULL, Variant, griffin, name_of, plus
from griffin.experiments.quality.drift import Way, read_after
from griffin.experiments.tasks.names import CLASSIFICATION, GENERATION
from griffin.experiments.tasks.scores import (
    TITLES,
    add_task_arguments,
    measure_tasks,
    relative,
    relative_error,
    score_table,
)
from griffin.request import PARTS, PartName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Quality against active parameters"
SEE = (
    "The lower a line at the same place, the less the same number of parameters loses. Behind scores of tasks, the "
    "band is one standard error of the full model's."
)
QUICK = {"windows": 3, "sparsities": [0.5], "limit": 5}
SPARSITIES = [0.25, 0.5, 0.75]
TASKS = ["arc_easy", "coqa"]
ALL = "griffin+"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds.add_sparsities(parser, SPARSITIES, "0.25 0.5 0.75")
    parser.add_argument("--prompt", type=kinds.count, default=384, help="tokens of the prompt (%(default)s)")
    parser.add_argument("--generated", type=kinds.count, default=128, help="tokens after it (%(default)s)")
    parser.add_argument("--windows", type=kinds.count, default=24, help="places in the text (%(default)s)")
    add_task_arguments(parser, CLASSIFICATION + GENERATION)
    parser.set_defaults(tasks=TASKS)


def variants_at(sparsity: float) -> list[Variant]:
    """The paper's method, each part that works alone, all parts, and all parts but one."""
    parts = frozenset(PARTS)
    return [*added_at(sparsity), *[plus(f"{ALL} without {part}", sparsity, parts - {part}) for part in PARTS]]


def added_at(sparsity: float) -> list[Variant]:
    """The paper's method, each part that works alone, and all parts."""
    # The prior needs the other parts, and the ridge needs the means of the compensation.
    alone: dict[str, frozenset[PartName]] = {
        "+ score": frozenset(["score"]),
        "+ budget": frozenset(["budget"]),
        "+ compensation": frozenset(["compensation"]),
        "+ compensation, ridge": frozenset(["compensation", "ridge"]),
        "+ gating": frozenset(["gating"]),
        "+ compensation, gating": frozenset(["compensation", "gating"]),
    }
    return [
        griffin(sparsity),
        *[plus(name, sparsity, some) for name, some in alone.items()],
        plus(ALL, sparsity, frozenset(PARTS)),
    ]


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``text``: the mean losses of all windows, for each variant at each sparsity and for the full model.
        ``active``: for the same, the mean count of active parameters of a token.
        ``tasks``, ``scores``: see ``evaluation.evaluate``.
    """
    sparsities = kinds.removing(arguments.sparsities)
    text = read_text(study, "wikitext")
    length = arguments.prompt + arguments.generated
    if length > study.context_length:
        raise ValueError(f"--prompt, --generated: {length} tokens, but the context has {study.context_length}")
    windows = text.windows(length + 1, arguments.windows, "--generated", "--windows")
    asked = [FULL, *[variant for sparsity in sparsities for variant in variants_at(sparsity)]]
    losses: dict[str, list[float]] = {}
    read: dict[str, list[float]] = {}
    with Progress(len(windows) * len(asked)) as progress:
        for (number, window), variant in product(enumerate(windows), asked):
            progress.begin(f"window {number + 1} of {len(windows)}, {variant.name} {percent(variant.sparsity)}")
            prompt = text.begun(window[: arguments.prompt])
            rest = window[arguments.prompt :]
            question = {"loss and active": [name_of(prompt), name_of(rest)], "pruning": variant.question()}
            compute = partial(loss_and_active, study, prompt, rest, variant)
            loss, active = study.ledger.once(question, compute)
            losses.setdefault(_key(variant), []).append(loss)
            read.setdefault(_key(variant), []).append(active)
            progress.advance()
    return {
        "prompt": arguments.prompt,
        "generated": arguments.generated,
        "windows": len(windows),
        "sparsities": sparsities,
        "active": {key: sum(values) / len(values) for key, values in read.items()},
        "text": losses,
        **_tasks(study, arguments, sparsities),
    }


def _tasks(study: Study, arguments: argparse.Namespace, sparsities: Sequence[float]) -> dict[str, Any]:
    pruned = [variant for sparsity in sparsities for variant in added_at(sparsity)]
    variants = [FULL, *[variant.renamed(f"{variant.name} {percent(variant.sparsity)}") for variant in pruned]]
    return measure_tasks(study, arguments, variants) if arguments.tasks else {"tasks": {}, "scores": {}}


def loss_and_active(study: Study, prompt: Sequence[int], rest: Sequence[int], variant: Variant) -> tuple[float, float]:
    """The mean negative log-likelihood of the tokens after the first of ``rest``, and a token's active parameters."""
    way, study.teacher.acted = Way("", variant.pruning(prompt) if variant.sparsity else None), Acted()
    loss = float(torch.cat(read_after(study.teacher, prompt, rest, way)).mean())
    return loss, study.teacher.acted.parameters(study.accounting)


def _key(variant: Variant) -> str:
    return f"{variant.name}@{variant.sparsity:g}"


def excess(found: Found, name: str, sparsity: float) -> torch.Tensor:
    """The excess loss of each window over the full model: fp64 ``(W,)``."""
    full_W = torch.tensor(found["text"][_key(FULL)], dtype=torch.float64)
    return torch.tensor(found["text"][f"{name}@{sparsity:g}"], dtype=torch.float64) - full_W


def relative_excess(found: Found, name: str, sparsity: float) -> tuple[float, float]:
    """The mean excess over that of the paper's method, and the standard error of this ratio over paired windows."""
    own_W, paper_W = excess(found, name, sparsity), excess(found, griffin(sparsity).name, sparsity)
    ratio = float(own_W.mean() / paper_W.mean())
    residual_W = own_W - ratio * paper_W
    return ratio, float(residual_W.std() / math.sqrt(len(own_W)) / paper_W.mean())


def tables(found: Found) -> list[Table]:
    rows = []
    for variant in variants_at(0.5):
        cells = [variant.name]
        for sparsity in found["sparsities"]:
            ratio, error = relative_excess(found, variant.name, sparsity)
            cells += [
                f"{float(excess(found, variant.name, sparsity).mean()):.3f}",
                f"{ratio:.2f} ± {error:.2f}",
                f"{_active(found, variant.name, sparsity):.1f} M",
            ]
        rows.append(cells)
    heads = ["", *[head for s in found["sparsities"] for head in (percent(s), "of the paper's", "active")]]
    caption = (
        f"Excess negative log-likelihood over the full model, in nats, of {found['generated']} tokens behind a prompt "
        f"of {found['prompt']}, {found['windows']} windows of WikiText-2 test; ± one standard error; active parameters "
        "as counted."
    )
    scored = [score_table(found, "Scores in %; ± one standard error")] if found["tasks"] else []
    multiple_choice = [task for task, facts in found["tasks"].items() if facts["chance"] is not None]
    return [Table(heads, rows, caption), *scored, *[_answers(found, task) for task in multiple_choice]]


def _answers(found: Found, task: str) -> Table:
    """How likely the right answers are. This tells more than how many of them win."""
    rows = []
    for variant in added_at(0.5):
        own = [found["scores"][task][f"{variant.name} {percent(sparsity)}"] for sparsity in found["sparsities"]]
        rows.append([variant.name, *[f"{scores['excess']:.3f} ± {scores['excess_stderr']:.3f}" for scores in own]])
    caption = f"Negative log-likelihood of {TITLES[task]}'s right answers over the full model's, in nats."
    return Table(["", *[percent(sparsity) for sparsity in found["sparsities"]]], rows, caption)


def draw(found: Found) -> "Figure":
    """Text on the left, tasks to its right, each over active parameters."""
    figure = new_figure(3.4 * (1 + len(found["tasks"])), 3.4)
    text, *others = panels(figure, 1, 1 + len(found["tasks"]))
    ours = (griffin(0.5).name, ALL)
    # The same colours for the same names in all panels.
    names = [*ours, *(variant.name for variant in added_at(0.5) if variant.name not in ours)]
    for name, colour in zip(names, cycle(COLOURS), strict=False):
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "color": colour, "label": name}
        style |= {"linewidth": 2} if name in ours else {"linewidth": 1.1, "linestyle": "dashed"}
        places = [_active(found, name, sparsity) for sparsity in found["sparsities"]]
        text.plot(places, [float(excess(found, name, s).mean()) for s in found["sparsities"]], **style)
        for task, beside in zip(found["tasks"], others, strict=True):
            beside.plot(places, [relative(found, task, f"{name} {percent(s)}") for s in found["sparsities"]], **style)
    text.set_title("WikiText-2")
    text.set_ylabel("excess negative log-likelihood, nats")
    text.legend(frameon=False, labelcolor=INK, fontsize=7)
    for task, beside in zip(found["tasks"], others, strict=True):
        error = relative_error(found, task)
        beside.axhline(1, color=MUTED, linewidth=1)
        beside.axhspan(1 - error, 1 + error, color=MUTED, alpha=0.15, linewidth=0)
        beside.set_title(TITLES[task])
        beside.set_ylabel("score / full model's")
    for axes in (text, *others):
        axes.set_xlabel("active parameters, millions")
        axes.set_ylim(bottom=0)
    return figure


def _active(found: Found, name: str, sparsity: float) -> float:
    """Active parameters of a token, in millions."""
    return float(found["active"][f"{name}@{sparsity:g}"]) / 1e6


def claims(found: Found) -> list[Claim]:
    if 0.5 not in found["sparsities"]:
        return []
    ratio, error = relative_excess(found, ALL, 0.5)
    own, paper = (_active(found, name, 0.5) for name in (ALL, griffin(0.5).name))
    return [
        Claim(
            "At 50 % griffin+ has at most half of the excess negative log-likelihood of the paper's method.",
            None if abs(ratio - 0.5) < 2 * error else ratio <= 0.5,
            f"{ratio:.2f} ± {error:.2f} of it with {own:.1f} and {paper:.1f} million active parameters, "
            f"on {found['windows']} windows of WikiText-2 test.",
        )
    ]
