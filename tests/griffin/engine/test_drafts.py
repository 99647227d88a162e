"""Drafts from n-grams in mode fast: the model in use checks them, and no token changes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from griffin import Engine, Pruning, Sampling, Verification
from griffin.decode.steps import StepName
from griffin.engine.drafts import Drafts
from griffin.engine.speculation import Verifier
from griffin.request import ModeName
from tests.griffin.engine.sequences import EVERYTHING, HALF, Prompts, greedy, ids
from tests.tiny import tiny_model

ECHO = Sampling(temperature=0, max_tokens=40, ignore_eos=True)


def looks_up(monkeypatch: pytest.MonkeyPatch, prompt: int, answer: list[int]) -> None:
    """Replace n-gram drafts for a prompt of ``prompt`` tokens: none, or up to three right tokens and a wrong one."""

    def looked_up(drafts: Drafts, room: int) -> list[int]:
        made = drafts._state.length - prompt + 1
        right = answer[made : made + made % 4]
        return [*right, (right[-1] + 1) % 100][:room] if right else []

    monkeypatch.setattr(Drafts, "looked_up", looked_up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [ECHO, replace(EVERYTHING, max_tokens=40)], ids=["greedy", "everything"])
@pytest.mark.parametrize(
    "pruning",
    [Pruning(0.0), Pruning(0.5), Pruning(0.5, method="griffin+")],
    ids=["full", "griffin", "griffin+"],
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "mistral"])
def test_n_grams_change_no_token(
    family: str,
    pruning: Pruning,
    sampling: Sampling,
    dtype: torch.dtype,
    prompts: Prompts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In mode fast, tokens and log-probabilities have the same bits as without drafts."""
    engine = Engine(tiny_model(family).to(dtype))
    prompt = prompts(21, 30)
    alone = list(engine.generate(prompt, sampling, pruning))
    looks_up(monkeypatch, len(prompt), ids(alone))
    drafted = list(engine.generate(prompt, sampling, pruning, verification=Verification()))

    assert [(token.id, token.logprobs, token.finish_reason) for token in drafted] == [
        (token.id, token.logprobs, token.finish_reason) for token in alone
    ]
    assert drafted[-1].verified is not None
    assert drafted[-1].verified.accepted > 5
    if pruning.sparsity:
        assert [bool(token.selection) for token in drafted[:3]] == [False, True, False]


FAST = Verification()


@pytest.mark.usefixtures("every_draft")
def test_n_grams_draft_by_themselves(prompts: Prompts) -> None:
    """With real drafts: where a model repeats itself, many tokens come from passes, and no token changes."""
    engine, prompt = Engine(tiny_model("gemma2")), prompts(11, 20)
    for pruning in (Pruning(), HALF):
        alone = ids(list(engine.generate(prompt, greedy(60), pruning)))
        tokens = list(engine.generate(prompt, greedy(60), pruning, verification=FAST))

        assert ids(tokens) == alone
        assert tokens[-1].verified.accepted > 20


@pytest.mark.parametrize("pruning", [Pruning(), HALF], ids=["full", "griffin"])
def test_a_drafted_answer_ends_where_it_would_have(
    pruning: Pruning, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a stop id or max_tokens, anywhere in a block. Nothing after it is drawn, counted or left in the cache."""
    prompt = prompts(24, 20)
    alone = ids(list(Engine(tiny_model("llama")).generate(prompt, greedy(24), pruning)))
    looks_up(monkeypatch, len(prompt), alone)
    for most in range(1, 13):
        engine = Engine(tiny_model("llama", max_position_embeddings=20 + most))
        for sampling in (greedy(most), replace(greedy(most), stop_token_ids=frozenset({alone[most // 2]}))):
            expected = ids(list(engine.generate(prompt, sampling, pruning)))
            tokens = list(engine.generate(prompt, sampling, pruning, verification=FAST))

            assert ids(tokens) == expected
            assert [bool(token.finish_reason) for token in tokens] == [False] * (len(tokens) - 1) + [True]
            assert tokens[-1].verified.tokens == len(tokens) - 1
            assert engine._assembly.state.length == len(prompt) + len(tokens) - 1


@pytest.mark.parametrize("pruning", [Pruning(), HALF], ids=["full", "griffin"])
def test_each_token_of_a_block_has_counts_of_its_own(
    pruning: Pruning, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop string may end the answer at any token of a block. The counts do not include later ones."""
    engine, prompt = Engine(tiny_model("llama")), prompts(24, 20)
    alone = ids(list(engine.generate(prompt, greedy(24), pruning)))
    looks_up(monkeypatch, len(prompt), alone)
    tokens = list(engine.generate(prompt, greedy(24), pruning, verification=FAST))
    counts = [token.verified for token in tokens]

    assert [count.tokens for count in counts] == list(range(24))
    assert all(count.accepted <= count.tokens for count in counts)
    assert [later.accepted - count.accepted for count, later in pairwise(counts)].count(1) == counts[-1].accepted > 6
    assert all(later.drafted >= count.drafted for count, later in pairwise(counts))


def test_a_drafted_answer_can_be_cancelled_in_a_block(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other token of the block comes, and nothing more is computed."""
    engine, prompt, cancelled = Engine(tiny_model("gemma2")), prompts(25, 20), list[bool]()
    alone = ids(list(engine.generate(prompt, greedy(24))))
    looks_up(monkeypatch, len(prompt), alone)
    stream = engine.generate(prompt, greedy(24), None, lambda: bool(cancelled), FAST)
    tokens = [next(stream) for _ in range(4)]
    cancelled.append(True)
    monkeypatch.setattr(Verifier, "block", lambda *_: pytest.fail("computed after cancellation"))

    assert list(stream) == []
    assert ids(tokens) == alone[:4]


@pytest.mark.usefixtures("every_draft")
def test_samples_with_drafts_do_not_disturb_each_other(prompts: Prompts) -> None:
    """Several answers to one prompt, in several modes. Neurons are reported as without drafts."""
    engine, prompt = Engine(tiny_model("gemma2")), prompts(11, 20)
    samplings = [Sampling(seed=seed, temperature=0.3, max_tokens=30, ignore_eos=True) for seed in (1, 2)]
    modes = (FAST, None, Verification("lossless"), FAST, Verification("guarded"), None)
    for sampling in samplings:
        alone = ids(list(engine.generate(prompt, sampling, HALF)))
        with engine.read(prompt, HALF) as read:
            answers = [list(read.generate(sampling, verification=mode)) for mode in modes]

        fast = [tokens for tokens, mode in zip(answers, modes, strict=True) if mode in (FAST, None)]
        assert [ids(tokens) for tokens in fast] == [alone] * 4
        assert [[bool(token.selection) for token in tokens[:3]] for tokens in fast] == [[False, True, False]] * 4


def test_a_pass_that_fails_fails_its_sequence_alone(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sequence is not affected."""
    engine, prompt = Engine(tiny_model("llama")), prompts(26, 20)
    alone = ids(list(engine.generate(prompt, greedy(12), HALF)))
    looks_up(monkeypatch, len(prompt), alone)
    with monkeypatch.context() as broken:
        broken.setattr(Verifier, "_walk", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            list(engine.generate(prompt, greedy(12), HALF, verification=FAST))

    assert ids(list(engine.generate(prompt, greedy(12), HALF, verification=FAST))) == alone


@pytest.mark.parametrize("mode", ["fast", "lossless"])
@pytest.mark.parametrize("step", ["native", "lean"])
@pytest.mark.parametrize("drafts", [15, 16, 64])
def test_more_drafts_than_one_pass_has_room_for(mode: ModeName, step: StepName, drafts: int, prompts: Prompts) -> None:
    """They are checked in several passes."""
    engine, prompt = Engine(tiny_model("llama"), step=step), prompts(27, 5) * 5
    dense = ids(list(engine.generate(prompt, greedy(80))))
    tokens = list(engine.generate(prompt, greedy(80), verification=Verification(mode, "ngram", drafts)))

    assert ids(tokens) == dense
    assert (step == "lean" and mode == "fast") or tokens[-1].verified.drafted >= drafts


def test_what_a_pass_of_the_model_at_hand_reads(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept neurons count once. With griffin+, a pass reads at most the sum of its tokens, and at most everything."""
    engine, prompt = Engine(tiny_model("llama")), prompts(28, 20)
    accounting = engine.accounting
    for pruning in (Pruning(), HALF, Pruning(0.5, method="griffin+")):
        alone = ids(list(engine.generate(prompt, greedy(3), pruning)))
        monkeypatch.setattr(Drafts, "looked_up", lambda self, room, alone=alone: alone[1:3][:room])
        found = list(engine.generate(prompt, greedy(3), pruning, verification=FAST))[-1].verified

        assert (found.tokens, found.passes, found.accepted) == (2, 1, 1)
        if pruning.method == "griffin":
            assert found.bytes_read == accounting.bytes_per_token_at(pruning.sparsity)
            assert found.parameters_read == accounting.active(accounting.kept(pruning.sparsity))
        else:
            assert accounting.bytes_per_token_at(0.5) < found.bytes_read <= accounting.weight_bytes
            assert accounting.active(accounting.kept(0.5)) < found.parameters_read <= accounting.total
