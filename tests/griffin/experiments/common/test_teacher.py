"""Teacher forcing gives the same numbers as generation token by token."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, load
from griffin.decode.twin import DecodeTwin, TwinStep
from griffin.experiments.common.likelihood import target_logprobs
from griffin.experiments.common.teacher import Teacher
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.loading import Checkpoint
from griffin.thresholds import Shares
from tests.griffin import oracle
from tests.griffin.model.checkpoint.files import mixed_file

Prompts = Callable[[int, int], list[int]]


def scored(teacher: Teacher, prompt: list[int], rest: list[int], pruning: Pruning) -> torch.Tensor:
    """Log-probabilities of a continuation. The full model predicts its first token."""
    teacher.begin()
    (first_1V,) = teacher.read(prompt, wanted=1)
    logits = [first_1V, *teacher.follow(rest[:-1], teacher.choose(pruning), wanted=len(rest) - 1)]
    return target_logprobs(torch.cat(logits), rest)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_it_is_generation_step_by_step(model: PreTrainedModel, prompts: Prompts, sparsity: float) -> None:
    """In every family: the logits of an independent GRIFFIN that generates these tokens one by one."""
    prompt = prompts(1, 21)
    generated, logits_TV = oracle.generate(model, prompt, sparsity, 9)
    expected = logits_TV.log_softmax(-1).gather(1, torch.tensor(generated)[:, None])[:, 0]

    # Chunks end inside the prompt and inside the rest.
    found = scored(Teacher(model, chunk=4), prompt, generated, Pruning(sparsity))

    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_it_is_what_the_engine_generates(model: PreTrainedModel, prompts: Prompts) -> None:
    """The product's decode path draws its greedy tokens from the same distributions."""
    prompt = prompts(2, 18)
    engine = Engine(model)
    rest = prompts(3, 7)
    expected = engine.score(prompt, rest, Pruning(0.5))

    torch.testing.assert_close(scored(Teacher(model), prompt, rest, Pruning(0.5)), expected, atol=2e-5, rtol=1e-4)


def test_thresholds_are_those_of_the_decode_twin(model: PreTrainedModel, prompts: Prompts) -> None:
    """griffin+ in every family, with gates or without: the same scores and the same counts of reads."""
    prompt, rest, pruning = prompts(2, 30), prompts(3, 12), Pruning(0.5, method="griffin+")
    engine, teacher = Engine(model), Teacher(model)
    expected = engine.score(prompt, rest, pruning)
    found = scored(teacher, prompt, rest, pruning)
    shares = teacher.shares()

    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert shares is not None
    assert 0.2 < (shares.gate + shares.up + shares.down) / 3 < 0.8
    assert shares == decoded_shares(model, prompt, rest, pruning)


def decoded_shares(model: PreTrainedModel, prompt: list[int], rest: list[int], pruning: Pruning) -> Shares | None:
    """The shares that these tokens read one by one in the twin's step, with the teacher's thresholds."""
    teacher, cache = Teacher(model), KVCache(len(feed_forwards(model)))
    teacher.begin_with(prompt)
    step = TwinStep(model, cache, DecodeTwin(model))
    for id in prompt:
        step(id)
    step.keep(teacher.choose(pruning))
    for id in rest[:-1]:
        step(id)
    return step.shares()


def test_thresholds_on_codes(tmp_path: Path, prompts: Prompts) -> None:
    """griffin+ on a file's codes gives the engine's scores, unless rounding moves a value across its threshold."""
    file = str(mixed_file(tmp_path / "mixed.gguf", "qwen2"))
    model = load(file, device="cpu", dtype="float32", cache_dir=tmp_path).model
    prompt, rest, pruning = prompts(2, 30), prompts(3, 12), Pruning(0.5, method="griffin+")
    expected = Engine(model).score(prompt, rest, pruning)

    difference = (scored(Teacher(model), prompt, rest, pruning) - expected).abs()
    assert difference.median() < 1e-4
    assert difference.max() < 0.5


def test_simulated_generation(model: PreTrainedModel, prompts: Prompts) -> None:
    """Section 5.1: all tokens but the last are the prompt, and the last goes through the kept neurons."""
    ids = prompts(4, 15)
    teacher = Teacher(model)
    teacher.begin()
    list(teacher.read(ids[:-1]))
    (found,) = teacher.follow(ids[-1:], teacher.choose(Pruning(0.5)), wanted=1)

    torch.testing.assert_close(found[0], oracle.classify(model, ids, 0.5), atol=2e-5, rtol=1e-4)


def test_branches(model: PreTrainedModel, prompts: Prompts) -> None:
    """Several choices at once: each row is what its choice gives alone. A second call gives the same."""
    ids = prompts(9, 15)
    teacher = Teacher(model)
    teacher.begin()
    list(teacher.read(ids[:-1]))
    prunings = [Pruning(0.5), Pruning(0.9), Pruning(0.5, "sample"), Pruning(0.5, method="griffin+")]
    sets = [None, *map(teacher.choose, prunings)]
    found = [teacher.branch(ids[-1], sets) for _ in range(2)]
    mark, expected = teacher.mark(), []
    for kept in sets:
        expected += teacher.follow(ids[-1:], kept, wanted=1)
        teacher.back_to(mark)

    for logits_BV in found:
        torch.testing.assert_close(logits_BV, torch.cat(expected), atol=2e-5, rtol=1e-4)


def test_a_branch_of_no_text(model: PreTrainedModel) -> None:
    """The very first token has no token before it."""
    teacher = Teacher(model)
    teacher.begin()
    expected = next(iter(teacher.read([5], wanted=1)))
    teacher.begin()

    torch.testing.assert_close(teacher.branch(5, [None, None])[1:], expected, atol=2e-5, rtol=1e-4)


def test_going_back(model: PreTrainedModel, prompts: Prompts) -> None:
    """After a mark, another continuation has the numbers that it has alone. Marks need not be in order."""
    # For this prompt, no two neurons at the cut are so close that rounding decides.
    teacher, prompt = Teacher(model, chunk=8), prompts(11, 12)
    one, two = prompts(6, 5), prompts(7, 6)
    expected = [scored(teacher, prompt[:end], rest, Pruning(0.5)) for end, rest in ((12, one), (7, two))]

    teacher.begin()
    (first,) = teacher.read(prompt[:7], wanted=1)
    early = teacher.mark()
    (last,) = teacher.read(prompt[7:], wanted=1)
    found = []
    for rest, head in ((one, last), (two, first)):
        tail = teacher.follow(rest[:-1], teacher.choose(Pruning(0.5)), wanted=len(rest) - 1)
        found.append(target_logprobs(torch.cat([head, *tail]), rest))
        teacher.back_to(early)

    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


def test_nothing_removed_is_the_full_model(model: PreTrainedModel, prompts: Prompts) -> None:
    """At sparsity 0 no neurons are selected, and the logits are the same."""
    teacher, ids = Teacher(model), prompts(8, 20)
    teacher.begin()
    full = torch.cat(list(teacher.read(ids, wanted=20)))
    teacher.begin()
    list(teacher.read(ids[:10]))
    assert teacher.choose(Pruning(0.0)) is None
    (rest,) = teacher.follow(ids[10:], None, wanted=10)

    torch.testing.assert_close(rest, full[10:], atol=1e-5, rtol=1e-4)


def test_on_the_real_model(smollm2: Checkpoint) -> None:
    """SmolLM2, magnitude and flocking, against the engine's own scoring."""
    ids = smollm2.tokenizer(
        "The tide rose over the sand bars while the keeper lit the lamp and wrote the hour."
    ).input_ids
    engine, teacher = Engine(smollm2.model), Teacher(smollm2.model)
    for pruning in (Pruning(0.5), Pruning(0.5, statistic="magnitude"), Pruning(0.5, "sample", seed=3)):
        expected = engine.score(ids[:9], ids[9:], pruning)
        torch.testing.assert_close(scored(teacher, ids[:9], ids[9:], pruning), expected, atol=1e-3, rtol=1e-3)
