"""Engines on a GGUF file's codes, against the file in plain numbers: the same answers to every kind of request."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling, Scoring, Token, Verification, build_engines, load
from griffin.decode.steps import StepName
from griffin.engine.prefixes import PrefixStore
from griffin.model.accounting import Accounting
from griffin.model.checkpoint.gguf import load_in_place
from griffin.model.identity import identity
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows
from griffin.model.matrix.modules import matrices
from tests.griffin.method.thresholds import as_selection, differences, sided, values
from tests.griffin.model.checkpoint.files import mixed_file

GREEDY = Sampling(temperature=0, max_tokens=10, ignore_eos=True, logprobs=2)
PLUS = Pruning(0.5, method="griffin+")
# Activations are rounded to 16 bits before they are multiplied with codes.
EXACT = 2e-3
Prompts = Callable[[int, int], list[int]]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_file(tmp_path_factory.mktemp("mixed") / f"{request.param}.gguf", request.param)


@pytest.fixture(scope="module")
def plain(path: Path) -> PreTrainedModel:
    """The model with the same numbers, which the dequantising reader loads."""
    return load(str(path), dtype="float32", device="cpu", cache_dir=path.parent / "cache").model


@pytest.fixture(scope="module")
def coded(path: Path) -> PreTrainedModel:
    """The model on the file's codes, with activations in fp32."""
    loaded = load_in_place(path, torch.float32)
    assert loaded is not None
    return loaded[0]


def same(found: list[Token], expected: list[Token]) -> None:
    assert [token.id for token in found] == [token.id for token in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs.chosen == pytest.approx(theirs.logprobs.chosen, abs=EXACT)


def test_codes_are_kept(path: Path, plain: PreTrainedModel, tmp_path: Path) -> None:
    """With dtype auto, codes of every kind stay. Nothing is cached, and the model has the same identity."""
    checkpoint = load(str(path), device="cpu", cache_dir=tmp_path)
    kinds = {type(matrix) for matrix in matrices(checkpoint.model)}
    accounting = Accounting.of(checkpoint.model)

    assert not list(tmp_path.iterdir())
    assert kinds >= {GroupedRows, GroupedColumns}
    assert set(checkpoint.formats.split(", ")) >= {"grouped4", "grouped6", "grouped8"}
    assert accounting.total == Accounting.of(plain).total
    assert accounting.weight_bytes < Accounting.of(plain).weight_bytes / 3
    assert identity(checkpoint.model) == identity(plain)


@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_tokens(
    coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts, step: StepName, sparsity: float
) -> None:
    """Dense and pruned, with each step: the same neurons, tokens and log-probabilities."""
    engines = [Engine(model, prefill_chunk=16, step=step) for model in (coded, plain)]
    found, expected = (list(engine.generate(prompts(1, 40), GREEDY, Pruning(sparsity))) for engine in engines)

    assert engines[0].step == step
    same(found, expected)
    if sparsity:
        pairs = zip(found[1].selection.chosen.layers, expected[1].selection.chosen.layers, strict=True)
        assert all(ours.equal(theirs) for ours, theirs in pairs)


def test_every_way_to_choose(coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts) -> None:
    """Neurons chosen by weight magnitude, by a draw, and for another prompt."""
    engines = [Engine(model) for model in (coded, plain)]
    for pruning in (
        Pruning(0.5, statistic="magnitude"),
        Pruning(0.5, selection="sample", seed=3),
        Pruning(0.5, selection="top_k_sample", seed=3),
    ):
        found, expected = (list(engine.generate(prompts(2, 30), GREEDY, pruning)) for engine in engines)
        same(found, expected)
    for engine in engines:
        again = list(engine.generate(prompts(3, 20), GREEDY, Pruning(reuse=found[1].selection)))
        assert again[1].selection.expert_set == found[1].selection.expert_set


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_griffin_plus(
    coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts, step: StepName, sparsity: float
) -> None:
    """Thresholds and shares are those of plain numbers, up to rounding.

    A value near its threshold may be on the other side, so tokens are compared loosely.
    """
    engines = [Engine(model, prefill_chunk=16, step=step) for model in (coded, plain)]
    pruning = Pruning(sparsity, method="griffin+")
    found, expected = (list(engine.generate(prompts(9, 50), GREEDY, pruning)) for engine in engines)
    ours, theirs = found[1].selection.chosen, expected[1].selection.chosen

    for own, other in zip(values(ours), values(theirs), strict=True):
        assert float((own - other).norm()) <= 1e-2 * float(other.norm())
    assert found[0].id == expected[0].id
    assert found[1].logprobs.chosen == pytest.approx(expected[1].logprobs.chosen, abs=0.3)
    assert differences(found[1].shares, expected[1].shares) < 0.02


def test_thresholds_of_another_prompt(coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts) -> None:
    """Reused thresholds that rounding cannot cross give the same tokens and log-probabilities with each step."""
    (given,) = [t.selection for t in Engine(plain).generate(prompts(9, 50), GREEDY, PLUS) if t.selection]
    reused = Pruning(0.5, reuse=as_selection(sided(given.chosen)))
    expected = list(Engine(plain, step="twin").generate(prompts(10, 30), GREEDY, reused))
    for step in ("native", "lean", "twin"):
        found = list(Engine(coded, step=step).generate(prompts(10, 30), GREEDY, reused))
        same(found, expected)
        assert [token.shares for token in found] == [token.shares for token in expected]


@pytest.mark.parametrize("draft", ["pruned", "ngram", "both"])
def test_lossless(coded: PreTrainedModel, prompts: Prompts, draft: str) -> None:
    """All tokens are the full model's."""
    engine = Engine(coded)
    dense = list(engine.generate(prompts(4, 30), GREEDY))
    verification = Verification("lossless", draft, draft_tokens=3)
    found = list(engine.generate(prompts(4, 30), GREEDY, Pruning(0.5), verification=verification))

    same(found, dense)


def test_guarded(coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts) -> None:
    """The same tokens as on plain numbers."""
    found, expected = (
        list(Engine(model).generate(prompts(5, 30), GREEDY, Pruning(0.5), verification=Verification("guarded")))
        for model in (coded, plain)
    )

    same(found, expected)


def test_comparison_and_scores(coded: PreTrainedModel, plain: PreTrainedModel, prompts: Prompts) -> None:
    """The comparison with the full model, and scores of a given text, dense and pruned."""
    ids = prompts(6, 40)
    results = []
    for model in (coded, plain):
        engine = Engine(model)
        with engine.read(ids, Pruning(0.5)) as prompt:
            tokens = [token.id for token in prompt.generate(GREEDY)]
            compared = prompt.compare(tokens)
        with engine.read(ids, Pruning(0), Scoring(top=1)) as prompt:
            scores = torch.tensor([score.chosen for score in prompt.scores[1:] if score])
        results.append((compared, scores, engine.score(ids[:30], ids[30:], Pruning(0.5))))
    (compared, *found), (expected, *wanted) = results

    assert compared.kl == pytest.approx(expected.kl, abs=EXACT)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() < EXACT


def test_prefixes(coded: PreTrainedModel, prompts: Prompts) -> None:
    """Reused chunks have the same bits as computed ones."""
    store = PrefixStore(1 << 30, 16)
    alone, reusing = Engine(coded, prefill_chunk=16), Engine(coded, prefill_chunk=16, prefixes=store)
    ids = prompts(7, 50)
    for _ in range(2):
        with reusing.read(ids, Pruning(0.5)) as prompt:
            found, cached = list(prompt.generate(GREEDY)), prompt.cached_tokens
    expected = list(alone.generate(ids, GREEDY, Pruning(0.5)))

    assert cached == 48
    assert [(token.id, token.logprobs) for token in found] == [(token.id, token.logprobs) for token in expected]


def test_two_workers(coded: PreTrainedModel, prompts: Prompts) -> None:
    """They share the codes. Each answers in its own thread, at the same time, as it would alone."""
    engines = build_engines(coded, 2)
    requests = [(prompts(8, 40), Pruning(0.5)), (prompts(9, 33), Pruning(0.0))]

    def run(engine: Engine, ids: list[int], pruning: Pruning) -> list[Token]:
        return [token for _ in range(3) for token in engine.generate(ids, GREEDY, pruning)]

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(run, engine, *request) for engine, request in zip(engines, requests, strict=True)]
        answers = [each.result() for each in found]
    for answer, request in zip(answers, requests, strict=True):
        same(answer, run(engines[0], *request))
    planes = [{m.planes[0].data_ptr() for m in matrices(e._assembly.trees.full)} for e in engines]
    assert planes[0] == planes[1]


def test_half_activations(path: Path, plain: PreTrainedModel, prompts: Prompts, tmp_path: Path) -> None:
    """In bfloat16, which auto chooses on many machines, answers stay near."""
    loaded = load_in_place(path, torch.bfloat16)
    assert loaded is not None
    engine, reference = Engine(loaded[0]), Engine(plain)
    engine.warm_up()
    ids = prompts(10, 40)

    assert engine.step == "native"
    for sparsity in (0.0, 0.5):
        found, expected = (each.score(ids[:30], ids[30:], Pruning(sparsity)) for each in (engine, reference))
        assert (found - expected).abs().mean() < 0.3


@pytest.mark.parametrize("wanted", [{"ff_offload": True}, {"dtype": "bfloat16"}], ids=["offload", "bfloat16"])
def test_options_that_dequantise(path: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    """A named dtype and FF offload dequantise the file into the cache."""
    checkpoint = load(str(path), device="cpu", cache_dir=tmp_path, **wanted)

    assert list((tmp_path / "dequantised").iterdir())
    assert not {type(matrix) for matrix in matrices(checkpoint.model)} & {GroupedRows, GroupedColumns}
