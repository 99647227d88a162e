"""The modes guarded and lossless, against the dense engine, the exact distribution and the masked model."""

import copy
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin import Checkpoint, Engine, Pruning, Sampling, Scoring, Verification, Verified
from griffin.decode.steps import StepName
from griffin.engine import refresh as refreshing
from griffin.engine.drafts import Drafts
from griffin.engine.prefixes import PrefixStore
from griffin.engine.refresh import overlap
from griffin.engine.speculation import Verifier
from griffin.errors import EngineBusy, InvalidRequest
from griffin.model.host import offload_
from griffin.model.placement import spread_
from griffin.neurons import Kept
from griffin.request import METHOD_NAMES, MODE_DRAFTS, DraftName, MethodName, ModeName
from tests.griffin.engine.sequences import EVERYTHING, HALF, Prompts, greedy, ids, run
from tests.griffin.engine.test_smollm2 import PROSE
from tests.tiny import tiny_model

CPU = torch.device("cpu")
LOSSLESS = Verification("lossless", "pruned")
DRAFTS = MODE_DRAFTS["lossless"]


def test_lossless_is_the_dense_model(model: PreTrainedModel, prompts: Prompts) -> None:
    """Greedy, for every family: high and low sparsity, short and long blocks, also with n-grams."""
    engine, prompt = Engine(model, prefill_chunk=7), prompts(1, 20)
    dense = ids(list(engine.generate(prompt, greedy(18))))
    for sparsity, drafts, draft in ((0.25, 1, "pruned"), (0.5, 4, "both"), (0.9, 7, "pruned"), (0.5, 3, "ngram")):
        tokens = run(engine, prompt, greedy(18), sparsity, Verification("lossless", draft, drafts))

        assert ids(tokens) == dense
        assert tokens[-1].finish_reason == "length"
        assert tokens[-1].verified.tokens == 17


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
@pytest.mark.parametrize("family", ["llama", "gemma2"], indirect=False)
def test_lossless_with_every_step(family: str, step: StepName, prompts: Prompts) -> None:
    """With a seed. The step that drafts changes only the speed."""
    engine = Engine(tiny_model(family), prefill_chunk=7, step=step)
    dense = list(engine.generate(prompts(2, 20), replace(EVERYTHING, seed=8)))
    tokens = run(engine, prompts(2, 20), replace(EVERYTHING, seed=8), 0.5, LOSSLESS)

    assert ids(tokens) == ids(dense)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=3, max_tokens=24, ignore_eos=True),
        Sampling(seed=3, max_tokens=24, ignore_eos=True, temperature=0.6, top_p=0.8, logprobs=0),
        Sampling(temperature=0, max_tokens=24, presence_penalty=1.0, repetition_penalty=2.0, logprobs=2),
        EVERYTHING,
    ],
    ids=["seeded", "nucleus", "greedy with penalties", "everything"],
)
def test_sampled_lossless_is_the_dense_model_with_that_seed(
    sampling: Sampling, draft: DraftName, prompts: Prompts
) -> None:
    """Tokens and log-probabilities are the dense model's, with all sampling fields."""
    engine = Engine(tiny_model("gemma2"), prefill_chunk=7)
    dense = list(engine.generate(prompts(3, 20), sampling))
    tokens = run(engine, prompts(3, 20), sampling, 0.5, Verification("lossless", draft))

    assert ids(tokens) == ids(dense)
    assert [token.finish_reason for token in tokens] == [token.finish_reason for token in dense]
    for token, expected in zip(tokens, dense, strict=True):
        if sampling.logprobs is not None:
            assert token.logprobs.chosen == pytest.approx(expected.logprobs.chosen, abs=1e-4)
            assert [id for id, _ in token.logprobs.top] == [id for id, _ in expected.logprobs.top]


VOCABULARY, DRAWS = 4, 250


@torch.inference_mode()
def exact(model: PreTrainedModel, prompt: list[int]) -> Tensor:
    """The dense model's joint probabilities of the next three tokens, ``(V, V, V)``."""
    pairs = torch.tensor(list(product(range(VOCABULARY), repeat=2)))
    rows = torch.cat((torch.tensor(prompt).expand(len(pairs), -1), pairs), dim=1)
    chances = model(rows).logits[:, -3:].softmax(dim=2).view(VOCABULARY, VOCABULARY, 3, VOCABULARY)
    return chances[0, 0, 0][:, None, None] * chances[:, 0, 1][:, :, None] * chances[:, :, 2]


def surprise(found: Tensor, expected: Tensor) -> float:
    """Pearson's chi-square in standard deviations from its expected value. All rare cells count as one."""
    rare = expected < 5
    found, expected = (torch.cat((side[~rare], side[rare].sum()[None])) for side in (found, expected))
    freedom = len(found) - 1
    return (float(((found - expected) ** 2 / expected).sum()) - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("verification", "like_the_dense_model"),
    [
        (Verification("lossless", "pruned", draft_tokens=2), True),
        (Verification("lossless", "both", draft_tokens=2), True),
        # All drafts are accepted, which shows that this test can fail.
        (Verification("guarded", "pruned", draft_tokens=2, acceptance=1e-30), False),
    ],
    ids=["lossless", "n-grams too", "blind"],
)
def test_sampled_tokens_have_the_dense_distribution(verification: Verification, like_the_dense_model: bool) -> None:
    """Counts of the first three tokens over many draws, against the exact probabilities."""
    model, prompt = tiny_model("llama", 1, vocab_size=VOCABULARY, num_hidden_layers=1), [3, 1, 2, 3, 1]
    counts = torch.zeros(VOCABULARY, VOCABULARY, VOCABULARY)
    with Engine(model, step="lean").read(prompt, Pruning(0.98)) as read:
        for seed in range(DRAWS):
            # A fourth token, so that two tokens are drafted.
            sampling = Sampling(seed=seed, max_tokens=4, ignore_eos=True)
            counts[tuple(ids(list(read.generate(sampling, verification=verification)))[:3])] += 1

    assert (surprise(counts, DRAWS * exact(model, prompt)) < 4) == like_the_dense_model


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"], indirect=False)
def test_guarded_may_be_strict(family: str, prompts: Prompts, draft: DraftName) -> None:
    """If only the most probable token is acceptable, greedy tokens are the dense model's."""
    engine, prompt = Engine(tiny_model(family), prefill_chunk=7), prompts(4, 20)
    tokens = run(engine, prompt, greedy(12), 0.5, Verification("guarded", draft, 5, acceptance=1.0))

    assert ids(tokens) == ids(list(engine.generate(prompt, greedy(12))))


def test_guarded_may_take_everything(prompts: Prompts) -> None:
    """If every token is acceptable, the tokens of one block are the kept neurons' own."""
    engine, prompt = Engine(tiny_model("llama")), prompts(5, 20)
    tokens = run(engine, prompt, greedy(9), 0.5, Verification("guarded", "pruned", 16, acceptance=1e-30))

    # The full model makes the first token and the last one.
    assert ids(tokens)[:-1] == ids(list(engine.generate(prompt, greedy(9), HALF)))[:-1]
    assert tokens[-1].verified.accepted == tokens[-1].verified.drafted == 7


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """A list whose blocks replace the next drafts of the kept neurons; when it is empty, there are no drafts."""
    blocks: list[list[int]] = []
    monkeypatch.setattr(Drafts, "generated", lambda self, room: (blocks.pop(0) if blocks else [])[:room])
    return blocks


@torch.inference_mode()
def after(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """The dense model's log-probabilities of the token after ``tokens``, ``(V,)``."""
    row_V: Tensor = model(torch.tensor([tokens])).logits[0, -1]
    return row_V.log_softmax(dim=0)


def test_guarded_keeps_what_is_acceptable_and_replaces_the_rest(scripted: list[list[int]], prompts: Prompts) -> None:
    """The full model's second best token stays. Its worst is replaced by its best, and later drafts are dropped."""
    model, prompt = tiny_model("llama"), prompts(6, 12)
    first = int(after(model, prompt).argmax())
    chances, second = (row.tolist() for row in after(model, [*prompt, first]).topk(2))
    then = after(model, [*prompt, first, second[1]])
    scripted.append([second[1], int(then.argmin()), 5, 6])
    gap = math.exp(chances[1] - chances[0])
    guarded = Verification("guarded", "pruned", acceptance=0.99 * gap)
    tokens = run(Engine(model), prompt, replace(greedy(8), logprobs=0), 0.5, guarded)

    assert ids(tokens)[:3] == [first, second[1], int(then.argmax())]
    assert replace(tokens[2].verified, parameters_read=0, bytes_read=0) == Verified(2, 4, 1, 1, 1)
    assert tokens[1].logprobs.chosen == pytest.approx(chances[1], abs=1e-4)
    assert tokens[2].logprobs.chosen == pytest.approx(float(then.max()), abs=1e-4)
    # With a slightly stricter acceptance, the second best is also replaced.
    scripted.append([second[1], 4])
    stricter = run(Engine(model), prompt, greedy(3), 0.5, replace(guarded, acceptance=min(1.0, 1.01 * gap)))[1]
    assert stricter.id == second[0]


def test_guarded_goes_on_where_the_full_model_would_draw_the_same(scripted: list[list[int]], prompts: Prompts) -> None:
    """An improbable draft stays if the full model draws the same token in this position."""
    engine, prompt = Engine(tiny_model("llama")), prompts(7, 12)
    sampling = Sampling(seed=1, temperature=3.0, max_tokens=8, ignore_eos=True)
    dense = ids(list(engine.generate(prompt, sampling)))
    scripted.append(dense[1:])
    tokens = run(engine, prompt, sampling, 0.5, Verification("guarded", "pruned", acceptance=1.0))

    assert ids(tokens) == dense
    assert tokens[-1].verified.passes == 1


def test_what_verification_took_is_counted(scripted: list[list[int]], prompts: Prompts) -> None:
    """A block that stays, a block that is cut, two without drafts; and the weights that were read for them."""
    engine, prompt = Engine(tiny_model("llama")), prompts(8, 12)
    dense = ids(list(engine.generate(prompt, greedy(8))))
    wrong = dense[5] % 100 + 3
    scripted += [dense[1:4], [wrong, wrong]]
    tokens = run(engine, prompt, greedy(8), 0.5, LOSSLESS)
    # The drafts are scripted, so no step of the kept neurons is counted.
    total, read = engine.accounting.total, engine.accounting.weight_bytes

    assert ids(tokens) == dense
    assert [token.verified for token in tokens] == [
        Verified(),
        *[Verified(made, 3, min(made, 3), 1, 0, 0, total, read) for made in range(1, 5)],
        Verified(5, 5, 3, 2, 1, 0, 2 * total, 2 * read),
        Verified(6, 5, 3, 3, 1, 0, 3 * total, 3 * read),
        Verified(7, 5, 3, 4, 1, 0, 4 * total, 4 * read),
    ]


def test_steps_and_passes_are_counted_as_what_they_read(prompts: Prompts) -> None:
    """Each drafted token reads the active parameters, each pass reads all, and n-grams read nothing."""
    engine = Engine(tiny_model("gemma2"))
    accounting = engine.accounting
    for draft in ("pruned", "ngram"):
        found = run(engine, prompts(9, 20), greedy(40), 0.5, Verification("lossless", draft))[-1].verified
        dense_steps = found.tokens - found.accepted - found.passes if draft == "ngram" else 0
        active = accounting.active(accounting.kept(0.5))

        assert found.accepted + found.passes + dense_steps == found.tokens == 39
        assert found.parameters_read == (found.passes + dense_steps) * accounting.total + (
            active * found.drafted if draft == "pruned" else 0
        )
        assert found.bytes_read == (found.passes + dense_steps) * accounting.weight_bytes + (
            accounting.bytes_per_token_at(0.5) * found.drafted if draft == "pruned" else 0
        )


@pytest.mark.parametrize("mode", ["guarded", "lossless"])
def test_the_cache_holds_what_the_full_model_leaves(mode: ModeName, prompts: Prompts) -> None:
    """After every block, it has only the full model's keys and values: none of drafts or kept neurons."""
    model, prompt = tiny_model("mistral"), prompts(10, 20)
    engine, reader = Engine(model, prefill_chunk=7), Engine(model, prefill_chunk=7)
    seen = list(prompt)
    for token in engine.generate(
        prompt, greedy(20), Pruning(0.75), verification=Verification(mode, "pruned", draft_tokens=5)
    ):
        seen.append(token.id)
        length = engine._assembly.state.cache.length
        if length != len(seen) - 1:
            continue
        with reader.read(seen[:-1]):
            torch.testing.assert_close(
                engine._assembly.state.cache.copy(0, length),
                reader._assembly.state.cache.copy(0, length),
                atol=1e-5,
                rtol=1e-5,
            )

    assert engine._assembly.state.cache.length == len(seen) - 1


@pytest.mark.usefixtures("every_draft")
def test_repetitions_are_looked_up(prompts: Prompts) -> None:
    """Where a model repeats itself, most tokens come from n-grams, and no token changes."""
    engine, prompt = Engine(tiny_model("gemma2")), prompts(11, 20)
    dense = ids(list(engine.generate(prompt, greedy(60))))
    found = {draft: run(engine, prompt, greedy(60), 0.75, Verification("lossless", draft)) for draft in DRAFTS}

    assert [ids(tokens) for tokens in found.values()] == [dense] * 3
    assert found["ngram"][-1].verified.accepted > 30
    assert found["ngram"][-1].verified.passes < 15
    assert found["both"][-1].verified.parameters_read < found["pruned"][-1].verified.parameters_read
    assert all(token.selection is None for token in found["ngram"])


@pytest.mark.usefixtures("every_draft")
def test_without_sparsity_n_grams_draft_alone(prompts: Prompts) -> None:
    """No neurons are chosen. Where no n-gram matches, the dense step makes one token."""
    engine, prompt = Engine(tiny_model("gemma2")), prompts(11, 20)
    dense = ids(list(engine.generate(prompt, greedy(40))))
    for draft in ("ngram", "both"):
        tokens = run(engine, prompt, greedy(40), 0.0, Verification("guarded", draft))

        assert ids(tokens) == dense
        assert tokens[-1].verified.accepted > 10
        assert all(token.selection is None for token in tokens)


@pytest.mark.parametrize(
    ("verification", "sparsity"), [(Verification("fast", "none"), 0.5), (Verification("lossless", "pruned"), 0.0)]
)
def test_nothing_is_verified_where_there_is_no_need(
    verification: Verification, sparsity: float, prompts: Prompts
) -> None:
    """In mode fast without drafts, or when all neurons draft, tokens are those without verification."""
    engine = Engine(tiny_model("llama"))
    tokens = run(engine, prompts(12, 20), greedy(6), sparsity, verification)

    assert [replace(token, selection=None) for token in tokens] == [
        replace(token, selection=None) for token in engine.generate(prompts(12, 20), greedy(6), Pruning(sparsity))
    ]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons are chosen again very often, even if hardly any neuron changes."""
    monkeypatch.setattr(refreshing, "REFRESH_TOKENS", 8)
    monkeypatch.setattr(refreshing, "SAME_ENOUGH", 1.1)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("draft", ["pruned", "both"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gptj"], indirect=False)
def test_neurons_follow_what_the_full_model_has_read(family: str, draft: DraftName, prompts: Prompts) -> None:
    """New neurons are those of a prompt with all tokens read so far; rejected drafts do not count."""
    model, prompt = tiny_model(family), prompts(13, 20)
    engine, reader = Engine(model, prefill_chunk=7), Engine(model, prefill_chunk=9)
    tokens = run(engine, prompt, greedy(30), 0.6, Verification("lossless", draft, 3))
    text = [*prompt, *ids(tokens)]
    taken = [(number, token.selection) for number, token in enumerate(tokens) if token.selection]

    assert ids(tokens) == ids(list(reader.generate(prompt, greedy(30))))
    assert taken[0][0] == 1
    assert len(taken) == 1 + tokens[-1].verified.refreshes > 1
    for number, selection in taken[1:]:
        with reader.read(text[: selection.prompt_tokens], Pruning(0.6)) as read:
            fresh = list(read.generate(greedy(2)))[1].selection

        # When the block began, all tokens before it were read, except the last one.
        assert selection.prompt_tokens == len(prompt) + number - 1
        assert selection.expert_set == fresh.expert_set
    with reader.read(text[: engine._assembly.state.statistic.sums().tokens]):
        sums = [each._assembly.state.statistic.sums().values for each in (engine, reader)]
    for found, wanted in zip(*sums, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("pruning", "refresh"),
    [
        (HALF, False),
        (Pruning(0.5, "sample", seed=1), True),
        (Pruning(0.5, statistic="magnitude"), True),
    ],
    ids=["not wanted", "drawn", "of no prompt"],
)
def test_some_neurons_stay(pruning: Pruning, refresh: bool, prompts: Prompts) -> None:
    """Neurons are not refreshed if the request says so, or if they do not depend on the text."""
    engine = Engine(tiny_model("llama"))
    verification = replace(LOSSLESS, refresh=refresh)
    tokens = list(engine.generate(prompts(14, 12), greedy(30), pruning, verification=verification))

    assert tokens[-1].verified.refreshes == 0
    assert [number for number, token in enumerate(tokens) if token.selection] == [1]


def test_neurons_that_are_nearly_the_same_are_not_taken(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """To gather them would cost more than it gains."""
    monkeypatch.setattr(refreshing, "REFRESH_TOKENS", 8)
    monkeypatch.setattr(refreshing, "SAME_ENOUGH", 0.01)
    tokens = run(Engine(tiny_model("llama")), prompts(14, 12), greedy(30), 0.5, LOSSLESS)

    assert tokens[-1].verified.refreshes == 0


def test_overlap_is_the_jaccard_similarity() -> None:
    """Over all layers together, which may keep different numbers of neurons."""
    first = Kept([torch.tensor([0, 1, 2]), torch.tensor([5])])
    second = Kept([torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6])])

    assert overlap(first.layers, second.layers, 20) == 3 / 7
    assert overlap(first.layers, first.layers, 20) == 1


def test_when_most_are_kept_the_removed_neurons_are_compared() -> None:
    """When most neurons are kept, all choices overlap. With all neurons kept, the overlap is 0."""
    everything = torch.arange(10)
    first, second = [everything[2:], everything[:8]], [everything[1:9], everything[:8]]

    assert overlap(first, second, 10) == 3 / 5
    assert overlap(first, first, 10) == 1
    assert overlap([everything] * 2, [everything] * 2, 10) == 0


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("mode", ["guarded", "lossless"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_further_samples_start_anew(mode: ModeName, draft: DraftName, prompts: Prompts) -> None:
    """Each sample starts with the prompt's neurons and statistic, whatever the sample before did in any mode."""
    engine, prompt = Engine(tiny_model("llama")), prompts(15, 20)
    verification, sampling = Verification(mode, draft, 4), Sampling(seed=2, max_tokens=30, ignore_eos=True)
    alone = run(engine, prompt, sampling, 0.5, verification)
    fast = ids(list(engine.generate(prompt, sampling, HALF)))
    with engine.read(prompt, HALF) as read:
        first = list(read.generate(sampling, verification=verification))
        second = list(read.generate(sampling, verification=verification))
        unverified = [list(read.generate(sampling))]
        third = list(read.generate(sampling, verification=verification))
        unverified.append(list(read.generate(sampling)))

    assert ids(first) == ids(second) == ids(third) == ids(alone)
    assert [ids(tokens) for tokens in unverified] == [fast, fast]
    assert [t.selection and t.selection.expert_set for t in first] == [
        t.selection and t.selection.expert_set for t in third
    ]
    assert first[-1].verified == second[-1].verified == third[-1].verified == alone[-1].verified


def test_nothing_generated_is_kept_as_a_prompts_beginning(prompts: Prompts) -> None:
    """The store keeps chunks of prompts only."""
    store = PrefixStore(2**20, 8)
    engine = Engine(tiny_model("llama"), prefill_chunk=8, prefixes=store)
    with engine.read(prompts(16, 20), HALF) as read:
        tokens = ids(list(read.generate(greedy(40), verification=LOSSLESS)))
        read.compare(tokens)

    assert len(store) == 2


@pytest.mark.parametrize("mode", ["guarded", "lossless"])
def test_a_stop_id_ends_within_a_block(mode: ModeName, prompts: Prompts) -> None:
    """No token follows it, in any position of a block. Without it the sequence goes on."""
    engine, prompt = Engine(tiny_model("gemma2")), prompts(17, 20)
    verification = Verification(mode, "pruned", draft_tokens=6, acceptance=1.0)
    free = ids(run(engine, prompt, greedy(12), 0.5, verification))
    for stop in dict.fromkeys(free[:8]):
        sampling = replace(greedy(12), stop_token_ids=frozenset({stop}))
        tokens = run(engine, prompt, sampling, 0.5, verification)

        assert ids(tokens) == free[: free.index(stop) + 1]
        assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + ["stop"]
        assert tokens[-1].verified.tokens == len(tokens) - 1


def test_nothing_is_drawn_after_an_accepted_end(scripted: list[list[int]], prompts: Prompts) -> None:
    """Drafts after the end are neither drawn nor counted."""
    engine, prompt = Engine(tiny_model("llama")), prompts(8, 12)
    dense = ids(list(engine.generate(prompt, greedy(8))))
    scripted.append(dense[1:7])
    tokens = run(engine, prompt, replace(greedy(8), stop_token_ids=frozenset({dense[3]})), 0.5, LOSSLESS)

    assert ids(tokens) == dense[: dense.index(dense[3]) + 1] == dense[:4]
    assert tokens[-1].verified == Verified(3, 6, 3, 1, 1, 0, engine.accounting.total, engine.accounting.weight_bytes)


@pytest.mark.parametrize("draft", DRAFTS)
def test_max_tokens_ends_within_a_block(draft: DraftName, prompts: Prompts) -> None:
    """There are exactly max_tokens tokens, and no position after the context is used."""
    prompt = prompts(18, 20)
    dense = ids(list(Engine(tiny_model("gpt2")).generate(prompt, greedy(12))))
    for most in (1, 2, 3, 7, 12):
        engine = Engine(tiny_model("gpt2", n_positions=20 + most))
        tokens = run(engine, prompt, greedy(most), 0.5, Verification("lossless", draft, 5))

        assert len(tokens) == most
        assert tokens[-1].finish_reason == "length"
        assert tokens[-1].verified.tokens == most - 1
    assert ids(tokens) == dense


def test_cancelled_between_the_tokens_of_a_block(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequence ends before the next token, and nothing more is computed."""
    cancelled: list[bool] = []
    engine = Engine(tiny_model("gemma2"))
    stream = engine.generate(
        prompts(19, 20),
        greedy(40),
        Pruning(0.25),
        lambda: bool(cancelled),
        Verification("lossless", "pruned", draft_tokens=8),
    )
    for _ in range(3):
        next(stream)
    # The block has more tokens.
    assert engine._assembly.state.length > 20 + 2
    cancelled.append(True)
    monkeypatch.setattr(Verifier, "block", lambda *_: pytest.fail("computed after cancellation"))

    assert list(stream) == []
    assert len(list(engine.generate(prompts(19, 20), greedy(3)))) == 3


def test_only_the_latest_sequence_goes_on(prompts: Prompts) -> None:
    """Another sequence of the prompt, or a comparison, takes over the cache."""
    with Engine(tiny_model("gemma2")).read(prompts(20, 20), HALF) as read:
        for other in (lambda: next(read.generate(greedy(9))), lambda: read.compare([5, 6, 7])):
            stream = read.generate(greedy(9), verification=LOSSLESS)
            next(stream)
            next(stream)
            other()
            with pytest.raises(EngineBusy):
                next(stream)


def test_verification_cannot_follow_a_sparsely_scored_end(prompts: Prompts) -> None:
    """Its keys and values come from kept neurons, so mode lossless is refused. The error names the field."""
    engine, text = Engine(tiny_model("llama")), prompts(21, 20)
    with engine.read(text, HALF, Scoring(prompt_tokens=12)) as read:
        with pytest.raises(InvalidRequest) as refusal:
            next(read.generate(greedy(4), verification=LOSSLESS))
        assert len(list(read.generate(greedy(4)))) == 4
    assert refusal.value.param == "griffin.mode"
    with engine.read(text, HALF, Scoring(prompt_tokens=20)) as read:
        tokens = ids(list(read.generate(greedy(4), verification=LOSSLESS)))

    assert tokens == ids(list(engine.generate(text, greedy(4))))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("place", ["host, staged", "host", "devices"])
@pytest.mark.parametrize("family", ["llama", "gpt2"], indirect=False)
def test_wherever_the_weights_are(family: str, place: str, prompts: Prompts) -> None:
    """With FF weights on the host or layers on several devices (one here), lossless is the dense model."""
    model, prompt = tiny_model(family), prompts(22, 20)
    elsewhere = copy.deepcopy(model)
    if place == "devices":
        spread_(elsewhere, [CPU, CPU])
    else:
        offload_(elsewhere, CPU, staged=place != "host")
    sampling = Sampling(seed=5, max_tokens=20, ignore_eos=True)
    dense = ids(list(Engine(model).generate(prompt, sampling)))
    engine = Engine(elsewhere, prefill_chunk=7)
    for draft in DRAFTS:
        assert ids(run(engine, prompt, sampling, 0.5, Verification("lossless", draft, 3))) == dense
    with engine.read(prompt, HALF) as read, Engine(model).read(prompt, HALF) as resident:
        assert read.compare(dense).kl == pytest.approx(resident.compare(dense).kl, abs=1e-4)


def test_the_default_model_lossless(smollm2: Checkpoint) -> None:
    """Half of the neurons draft prose, sampled; the tokens are the dense model's."""
    prompt = smollm2.tokenizer(PROSE[:200]).input_ids
    engine, sampling = Engine(smollm2.model), Sampling(seed=6, temperature=0.7, max_tokens=10, ignore_eos=True)
    tokens = run(engine, prompt, sampling, 0.5, LOSSLESS)

    assert ids(tokens) == ids(list(engine.generate(prompt, sampling)))
    assert tokens[-1].verified.accepted > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_lossless_is_exact_below_float32(method: MethodName, dtype: torch.dtype, prompts: Prompts) -> None:
    """A pass of the compiled step gives the bits of steps, whichever neurons made the drafts."""
    engine, pruning = Engine(tiny_model("llama").to(dtype)), Pruning(0.75, method=method)
    for seed, sampling in enumerate([greedy(40), Sampling(seed=5, max_tokens=40, ignore_eos=True)]):
        prompt = prompts(22 + seed, 20)
        dense = ids(list(engine.generate(prompt, sampling)))
        for draft in DRAFTS:
            tokens = list(engine.generate(prompt, sampling, pruning, verification=Verification("lossless", draft)))
            assert ids(tokens) == dense
