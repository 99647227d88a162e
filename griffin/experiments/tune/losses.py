"""Losses: what a sparsity costs on a user's prompt. The kept neurons' predictions are compared with the full model's.

Shapes: C tokens of a chunk, T tokens judged, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from griffin import Pruning, Sampling
from griffin.experiments.common.likelihood import target_logprobs
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.common.variants import name_of
from griffin.experiments.tune.prompts import Case
from griffin.request import MethodName


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over the tokens that the kept neurons predict, in nats.

    tokens: how many.
    excess: negative log-likelihood above the full model's.
    divergence: KL(full || pruned), which is never negative.
    agreed: tokens where both models have the same most probable token.
    late_tokens, late_divergence: the same for the second half of each continuation.
    removed: the worth of the removed neurons by the prompt's statistic (see ``Chooser``), counted for each token.
    """

    tokens: int
    excess: float
    divergence: float
    agreed: int
    late_tokens: int = 0
    late_divergence: float = 0.0
    removed: float = 0.0

    @classmethod
    def none(cls, tokens: int) -> "Loss":
        """The loss of the full model."""
        return cls(tokens, 0.0, 0.0, tokens)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@torch.inference_mode()
def loss(full_CV: Tensor, pruned_CV: Tensor, targets: Sequence[int], late_from: int | None = None) -> Loss:
    """
    Args:
        full_CV, pruned_CV: logits of any dtype.
        targets: the token that each row predicts.
        late_from: rows from this one on are in the second half of the continuation.
    """
    full_logprobs_CV, pruned_logprobs_CV = full_CV.float().log_softmax(-1), pruned_CV.float().log_softmax(-1)
    excess_C = target_logprobs(full_CV, targets) - target_logprobs(pruned_CV, targets)
    divergence_C = (full_logprobs_CV.exp() * (full_logprobs_CV - pruned_logprobs_CV)).sum(dim=1)
    late_C = divergence_C[len(targets) if late_from is None else max(0, late_from) :]
    agreed_C = full_CV.argmax(-1) == pruned_CV.argmax(-1)
    return Loss(
        len(targets),
        float(excess_C.sum()),
        float(divergence_C.sum()),
        int(agreed_C.sum()),
        len(late_C),
        float(late_C.sum()),
    )


def losses(
    study: Study,
    case: Case,
    sparsities: Sequence[float],
    tokens: int,
    temperature: float,
    method: MethodName,
) -> dict[float, Loss]:
    """The loss at each sparsity, from the study's ledger where it has it. Empty if the continuation is a single token.

    Args:
        tokens: the largest length of the continuation.
        temperature: at which the full model continues a prompt without a completion.
    """
    rest = continuation(study, case, tokens, temperature)
    if len(rest) < 2:
        return {}
    prunings = {s: Pruning(s, method=method) for s in sparsities}
    questions = {s: _question([*case.ids, *rest], len(case.ids), prunings[s]) for s in sparsities}
    missing = [s for s, question in questions.items() if study.ledger.get(question) is None]
    asked = [prunings[s] for s in missing]
    for sparsity, found in zip(missing, teacher_forced(study.teacher, case.ids, rest, asked), strict=True):
        study.ledger.put(questions[sparsity], asdict(found))
    return {s: Loss(**study.ledger.get(question)) for s, question in questions.items()}  # type: ignore[arg-type]


def continuation(study: Study, case: Case, tokens: int, temperature: float) -> list[int]:
    """The tokens to judge on: the prompt's completion, or the full model's. Each call returns the same."""
    if case.completion:
        return list(case.completion[:tokens])
    name = name_of(case.ids)

    def drawn() -> list[int]:
        sampling = Sampling(temperature=temperature, max_tokens=tokens, seed=int(name[:8], 16))
        return [token.id for token in study.engine.generate(case.ids, sampling)]

    question = {"continuation": name, "tokens": tokens, "temperature": temperature}
    found: list[int] = study.ledger.once(question, drawn)
    return found


def teacher_forced(
    teacher: Teacher, ids: Sequence[int], rest: Sequence[int], prunings: Sequence[Pruning]
) -> Iterator[Loss]:
    """The loss of each pruning on a continuation.

    The first token does not count, because the full model always predicts it (4.2).
    Memory holds the full model's logits ``(T, V)``.
    """
    if not prunings:
        return
    inputs, targets = rest[:-1], rest[1:]
    teacher.begin()
    list(teacher.read(ids))
    prompt = teacher.mark()
    full_TV = torch.cat(list(teacher.follow(inputs, None, wanted=len(inputs))))
    late_from = (len(targets) + 1) // 2
    for pruning in prunings:
        teacher.back_to(prompt)
        removed, found = teacher.removed(pruning), Loss.none(0)
        for pruned_CV in teacher.follow(inputs, teacher.choose(pruning), wanted=len(inputs)):
            first = found.tokens
            place = slice(first, first + len(pruned_CV))
            found += loss(full_TV[place], pruned_CV, targets[place], late_from - first)
        yield replace(found, removed=removed * found.tokens)


def _question(text: Sequence[int], prompt_tokens: int, pruning: Pruning) -> dict[str, Any]:
    return {
        "loss by halves": name_of(text),
        "prompt_tokens": prompt_tokens,
        "sparsity": pruning.sparsity,
        "method": pruning.method,
    }
