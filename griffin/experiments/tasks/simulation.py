"""Simulation: pruned models answer lm-eval's questions. It asks for scores of given answers, and for answers.

Scores simulate generation as the paper does (5.1). All input tokens except the last are the prompt, which the full
model reads. The last one goes through the kept neurons. (The last token of an answer is no input to its own score.)
Generated answers come from the product's own decode path.

Several variants answer together, so that each text is read once. Answers in the study's ledger are not computed again.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from griffin.engine.prompt import Prompt
from griffin.experiments.common.likelihood import target_logprobs
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import Variant, name_of
from griffin.request import Sampling

Ids = Sequence[int]
# The log-likelihood of an answer, and whether each of its tokens is the most probable one.
Score = tuple[float, bool]


def score(study: Study, variants: Sequence[Variant], pairs: Sequence[tuple[Ids, Ids]], what: str) -> None:
    """Compute the scores of these (context, answer) pairs for all variants. ``known_score`` reads them.

    Args:
        what: the progress bar shows it.
    """
    missing = [
        (context, answer)
        for context, answer in pairs
        if any(study.ledger.get(_score_question(v, context, answer)) is None for v in variants)
    ]
    with Progress(len(missing)) as progress:
        for context, group in groupby(missing, key=lambda pair: pair[0]):
            progress.begin(what)
            for answer, scores in _scores(study, variants, context, [answer for _, answer in group]):
                for variant, found in zip(variants, scores, strict=True):
                    study.ledger.put(_score_question(variant, context, answer), list(found))
                progress.advance()


def known_score(study: Study, variant: Variant, context: Ids, answer: Ids) -> Score:
    """A score that ``score`` has computed."""
    likelihood, greedy = _known(study, _score_question(variant, context, answer))
    return likelihood, greedy


def _known(study: Study, question: dict[str, object]) -> Any:
    found = study.ledger.get(question)
    assert found is not None, "score() or generate() comes first"
    return found


def _score_question(variant: Variant, context: Ids, answer: Ids) -> dict[str, object]:
    return {"score": name_of([*context, *answer]), "context": len(context), "pruning": variant.question()}


def _scores(
    study: Study, variants: Sequence[Variant], context: Ids, answers: Iterable[Ids]
) -> Iterable[tuple[Ids, list[Score]]]:
    """Scores of answers to the same context, for each variant. The context is read once."""
    teacher = study.teacher
    teacher.begin()
    for _ in teacher.read(context[:-1]):
        pass
    start = teacher.mark()
    for answer in answers:
        inputs = [*context[-1:], *answer[:-1]]
        # With a single input there is no prompt to choose neurons on. The full model reads it, as in the server.
        dense = len(inputs) if len(context) + len(answer) == 2 else len(inputs) - 1
        head = list(teacher.read(inputs[:dense], wanted=dense))
        logits = [head for _ in variants]
        if dense < len(inputs):
            sets = [teacher.choose(variant.pruning([*context, *answer])) for variant in variants]
            logits = [[*head, row_V[None]] for row_V in teacher.branch(inputs[-1], sets)]
        yield answer, [_score(own, answer) for own in logits]
        teacher.back_to(start)


def _score(logits: list[Tensor], answer: Ids) -> Score:
    logits_TV = torch.cat(logits)
    targets_T = torch.tensor(answer, device=logits_TV.device)
    return float(target_logprobs(logits_TV, answer).sum()), bool((logits_TV.argmax(dim=1) == targets_T).all())


def generate(
    study: Study, variants: Sequence[Variant], prompts: Sequence[Ids], max_tokens: int, until: Sequence[str], what: str
) -> None:
    """Compute greedy continuations of these prompts for all variants. ``known_text`` reads them.

    Args:
        until: texts that end a continuation. They stay in it, with the rest of their last token.
    """
    missing = [
        prompt
        for prompt in prompts
        if any(study.ledger.get(_text_question(v, prompt, max_tokens, until)) is None for v in variants)
    ]
    with Progress(len(missing) * len(variants)) as progress:
        for prompt in missing:
            prunings = [variant.pruning(prompt) for variant in variants]
            with study.engine.read(prompt, others=prunings) as read:
                for variant, pruning in zip(variants, prunings, strict=True):
                    progress.begin(f"{what}, {variant.name}")
                    read.prune(pruning)
                    question = _text_question(variant, prompt, max_tokens, until)
                    study.ledger.once(question, partial(_text, study, read, max_tokens, until))
                    progress.advance()


def known_text(study: Study, variant: Variant, prompt: Ids, max_tokens: int, until: Sequence[str]) -> str:
    """A continuation that ``generate`` has computed."""
    return str(_known(study, _text_question(variant, prompt, max_tokens, until)))


def _text_question(variant: Variant, prompt: Ids, max_tokens: int, until: Sequence[str]) -> dict[str, object]:
    return {
        "generate": name_of(prompt), "max_tokens": max_tokens, "until": list(until), "pruning": variant.question(),
    }  # fmt: skip


def _text(study: Study, prompt: Prompt, max_tokens: int, until: Sequence[str]) -> str:
    ids: list[int] = []
    text = ""
    sampling = Sampling(max_tokens=max_tokens, temperature=0)
    for token in prompt.generate(sampling):
        ids.append(token.id)
        text = str(study.tokenizer.decode(ids, skip_special_tokens=True))
        if any(stop in text for stop in until):
            break
    return text
