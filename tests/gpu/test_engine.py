"""The engine on a CUDA device against the same model on the CPU, and the steps against each other."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from griffin import Engine, Pruning, Sampling, Verification, build_engines
from griffin.decode.steps import StepName
from griffin.engine.prefixes import PrefixStore
from griffin.model.host import offload_
from griffin.request import METHOD_NAMES, MODE_DRAFTS, DraftName, MethodName
from tests.griffin import oracle
from tests.tiny import COMMON_BLOCK, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
SEEDED = Sampling(seed=5, max_tokens=12, ignore_eos=True)
EVERYTHING = Sampling(
    seed=4, max_tokens=12, ignore_eos=True, top_p=0.9, top_k=50, min_p=0.01, logprobs=3,
    presence_penalty=0.5, frequency_penalty=0.4, repetition_penalty=1.1, logit_bias={9: 2.0}, min_tokens=3,
)  # fmt: skip
SAMPLINGS = [GREEDY, SEEDED, EVERYTHING]


def ids(
    engine: Engine, prompt: list[int], sampling: Sampling, sparsity: float, method: MethodName = "griffin"
) -> list[int]:
    return [token.id for token in engine.generate(prompt, sampling, Pruning(sparsity, method=method))]


def test_pruned_decoding_equals_the_masked_model(family: str, prompts: Prompts) -> None:
    """Greedy tokens at half the neurons, in fp32, for every family. Blocks of the common form are decoded by graphs."""
    expected, _ = oracle.generate(tiny_model(family), prompts(1, 20), 0.5, 12)
    engine = Engine(tiny_model(family).to("cuda"), prefill_chunk=7)

    assert engine.step == ("graph" if family in COMMON_BLOCK else "twin")
    assert ids(engine, prompts(1, 20), GREEDY, 0.5) == expected


@pytest.mark.parametrize("step", ["twin", "auto"])
def test_a_request_may_keep_more_neurons_than_the_first(family: str, step: StepName, prompts: Prompts) -> None:
    """Each family decodes, scores and compares with buffers that grow to the largest request so far."""
    ours, plain = Engine(tiny_model(family).to("cuda"), step=step), Engine(tiny_model(family), step="twin")
    for number, sparsity in enumerate((0.9, 0.25, 0.75)):
        prompt, pruning = prompts(number, 20), Pruning(sparsity)
        scores = [engine.score(prompt, prompts(9, 5), pruning).cpu() for engine in (ours, plain)]
        with ours.read(prompt, pruning) as read:
            tokens = [token.id for token in read.generate(GREEDY)]
            comparison = read.compare(tokens)

        torch.testing.assert_close(*scores, atol=1e-3, rtol=1e-3)
        assert tokens == ids(plain, prompt, GREEDY, sparsity)
        assert comparison is not None


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "everything"])
def test_graphs_give_what_plain_steps_give(family: str, prompts: Prompts, sampling: Sampling) -> None:
    """Dense and pruned requests in turn on one engine: a request leaves no trace in the next."""
    model = tiny_model(family).to("cuda")
    engine, plain = Engine(model, prefill_chunk=8), Engine(model, prefill_chunk=8, step="twin")
    for number, sparsity in enumerate((0.5, 0.0, 0.9, 0.5)):
        prompt = prompts(number, 9 + 5 * number)

        assert ids(engine, prompt, sampling, sparsity) == ids(plain, prompt, sampling, sparsity)


def test_tokens_pick_in_graphs_as_in_plain_steps(family: str, prompts: Prompts) -> None:
    """Thresholds, kept neurons and the full model in turn. What tokens read is counted."""
    model = tiny_model(family).to("cuda")
    engine, plain = Engine(model, prefill_chunk=8), Engine(model, prefill_chunk=8, step="twin")
    choices: list[tuple[float, MethodName]] = [(0.5, "griffin+"), (0.5, "griffin"), (0.25, "griffin+"), (0, "griffin")]
    for number, (sparsity, method) in enumerate(choices):
        prompt = prompts(number, 20)

        assert ids(engine, prompt, GREEDY, sparsity, method) == ids(plain, prompt, GREEDY, sparsity, method)
        shares = engine._assembly.state.decoder.shares()
        assert (shares is not None) == (method == "griffin+")


def test_selections_that_draw_choose_as_on_the_cpu(prompts: Prompts) -> None:
    """The same seed draws the same neurons on both devices."""
    pruning = Pruning(0.5, selection="sample", statistic="magnitude", seed=3)
    sets = []
    for device in ("cpu", "cuda"):
        tokens = list(Engine(tiny_model("llama").to(device)).generate([7, 8, 9], SEEDED, pruning))
        sets.append(tokens[1].selection.expert_set)

    assert sets[0] == sets[1]


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "everything"])
def test_nothing_waits_and_nothing_is_allocated_between_tokens(
    prompts: Prompts, sampling: Sampling, method: MethodName
) -> None:
    """To launch a step is to launch a graph and a copy to pinned memory."""
    engine = Engine(tiny_model("llama").to("cuda"))
    decoder = engine._assembly.state.decoder
    with engine.read(prompts(2, 20), Pruning(0.5, method=method)) as read:
        tokens = read.generate(sampling)
        next(tokens)
        next(tokens)
        allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            decoder.advance()
            decoder.advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")

        assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


def test_a_further_worker_costs_its_cache_and_little_else() -> None:
    """Engines share the weights and the gates by input. Kept neurons are read in place."""
    changes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 2048}
    model = tiny_model("llama", **changes).to("cuda")
    (first,) = build_engines(model, 1)
    before = torch.cuda.memory_allocated()
    second = Engine(model)
    second.warm_up()
    cache = sum(tensor.nbytes for pair in second._assembly.state.cache.reserve(1) for tensor in pair)

    # 24 MiB are enough for what the kernels of a pass of 16 tokens hand to each other.
    assert torch.cuda.memory_allocated() - before < cache + 24 * 2**20
    assert ids(first, [5, 6, 7], GREEDY, 0.5) == ids(second, [5, 6, 7], GREEDY, 0.5)


def test_prefix_reuse_changes_nothing(family: str, prompts: Prompts) -> None:
    """Tokens and neurons stay the same; keys and values are copied into the graphs' own buffers."""
    model = tiny_model(family).to("cuda")
    plain = Engine(model, prefill_chunk=8)
    reusing = Engine(model, prefill_chunk=8, prefixes=PrefixStore(1 << 30, 8))
    for tail in (3, 4, 12):
        prompt = [*prompts(3, 30), *prompts(tail, tail)]
        found = list(reusing.generate(prompt, SEEDED, Pruning(0.5)))
        expected = list(plain.generate(prompt, SEEDED, Pruning(0.5)))

        assert [token.id for token in found] == [token.id for token in expected]
        assert found[1].selection.expert_set == expected[1].selection.expert_set
    assert len(reusing.prefixes) > 0


def test_offloaded_equals_resident(family: str, prompts: Prompts) -> None:
    """Weights on the host are streamed for the prompt, and gathered for decoding."""
    resident = Engine(tiny_model(family).to("cuda"), prefill_chunk=8)
    model = tiny_model(family)
    offload_(model, torch.device("cuda"))
    offloaded = Engine(model, prefill_chunk=8)
    for sparsity in (0.5, 0.0):
        assert ids(offloaded, prompts(4, 20), GREEDY, sparsity) == ids(resident, prompts(4, 20), GREEDY, sparsity)


@pytest.mark.parametrize("draft", MODE_DRAFTS["lossless"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "everything"])
def test_lossless_is_the_dense_model(family: str, prompts: Prompts, sampling: Sampling, draft: DraftName) -> None:
    """In fp32. Graphs or the model's own step write the drafts; the model reads them in blocks."""
    engine = Engine(tiny_model(family).to("cuda"), prefill_chunk=8)
    for number, drafts in enumerate((2, 7)):
        prompt, verification = prompts(number, 20), Verification("lossless", draft, drafts)
        tokens = list(engine.generate(prompt, sampling, Pruning(0.5), verification=verification))

        assert [token.id for token in tokens] == ids(engine, prompt, sampling, 0.0)
        assert tokens[-1].verified is not None


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_passes_have_the_bits_of_steps(prompts: Prompts, dtype: torch.dtype, method: MethodName) -> None:
    """Passes of every size, dense and at half the neurons. The model is wide enough for several tiles and splits."""
    sizes = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 4, "vocab_size": 8192}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 128}
    engine = Engine(tiny_model("llama", **sizes, **heads).to("cuda", dtype))
    state, steps, drawn = engine._assembly.state, prompts(21, 16), replace(GREEDY, max_tokens=2)
    for sparsity in (0.0, 0.5):
        with engine.read(prompts(20, 200), Pruning(sparsity, method=method)) as read:
            list(read.generate(drawn))
            expected = []
            for place, id in enumerate(steps):
                state.rewind(200 + place)
                state.decoder.take(id, state.decoder.logits())()
                state.decoder.advance()()
                expected.append(state.decoder.logits().clone())
            for tokens in (1, 2, 3, 4, 7, 8, 16):
                state.rewind(200)
                found_TV = state.decoder.passes.read(steps[:tokens])

                assert torch.equal(found_TV, torch.stack(expected[:tokens])), tokens


@pytest.mark.parametrize("model_type", COMMON_BLOCK)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "everything"])
def test_drafts_change_no_token_in_halves(model_type: str, prompts: Prompts, sampling: Sampling) -> None:
    """In modes fast and lossless, in bfloat16: recorded passes have the bits of recorded steps."""
    engine = Engine(tiny_model(model_type).to("cuda", torch.bfloat16))
    # Only three tokens may come, so that n-grams are found.
    wanted, prompt = replace(sampling, logit_bias=dict.fromkeys(range(5, 8), 90.0)), [5, 5, 6, 6, 7, 7, 5, 7, 6, 5]
    for sparsity in (0.0, 0.5):
        plain = Verification("fast", "none")
        expected = [t.id for t in engine.generate(prompt, wanted, Pruning(sparsity), verification=plain)]
        drafted = list(
            engine.generate(prompt, wanted, Pruning(sparsity), verification=Verification("fast", "ngram", 4))
        )

        assert [token.id for token in drafted] == expected
        assert drafted[-1].verified.drafted > 0
    lossless = list(engine.generate(prompt, wanted, Pruning(0.5), verification=Verification("lossless", "both", 4)))
    assert [token.id for token in lossless] == ids(engine, prompt, wanted, 0.0)


def test_guarded_drafts_of_graphs_are_those_of_plain_steps(prompts: Prompts) -> None:
    """The tokens and counts of verified drafts are the same, with refreshed neurons and in a second sequence."""
    model = tiny_model("llama").to("cuda")
    found = []
    for engine in (Engine(model), Engine(model, step="lean"), Engine(model, step="twin")):
        with engine.read(prompts(6, 20), Pruning(0.5)) as read:
            for sampling in (SEEDED, EVERYTHING):
                tokens = list(read.generate(sampling, verification=Verification("guarded", draft_tokens=5)))
                found.append(([token.id for token in tokens], tokens[-1].verified))

    assert found[:2] == found[2:4] == found[4:]


def test_a_comparison_is_that_of_the_cpu(prompts: Prompts) -> None:
    """The comparison of kept neurons with the full model has the same figures on both devices."""
    figures = []
    for device in ("cpu", "cuda"):
        with Engine(tiny_model("llama").to(device)).read(prompts(7, 20), Pruning(0.5)) as read:
            found = read.compare(prompts(8, 30))
            assert found is not None
            figures.append((found.kl, found.top1_agreement, found.perplexity_ratio))

    assert figures[0] == pytest.approx(figures[1], rel=1e-3)


def test_half_precision_stays_near_full(prompts: Prompts) -> None:
    """In bfloat16, the kernels nearly always choose the same tokens as torch."""
    model = tiny_model("llama").to("cuda", torch.bfloat16)
    graph, twin = Engine(model), Engine(model, step="twin")
    agreed = [
        ids(graph, prompts(seed, 12), GREEDY, 0.5)[:2] == ids(twin, prompts(seed, 12), GREEDY, 0.5)[:2]
        for seed in range(20)
    ]

    assert sum(agreed) >= 17
