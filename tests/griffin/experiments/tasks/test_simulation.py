"""Pruned models answer lm-eval: compared with an independent GRIFFIN, and with lm-eval's own model."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import FULL, Variant, griffin, magnitude, name_of, plus
from griffin.experiments.tasks import sandbox, simulation
from griffin.experiments.tasks.definitions import TASKS, make_manager, make_task
from griffin.experiments.tasks.evaluation import evaluate
from griffin.experiments.tasks.harness import GriffinLM
from griffin.experiments.tasks.names import CLASSIFICATION, GENERATION, REASONING
from griffin.experiments.tasks.scores import score_table
from griffin.method.statistic import magnitude as by_weight
from griffin.model.families import feed_forwards
from griffin.model.loading import Checkpoint, load
from griffin.neurons import Kept
from tests.griffin import oracle
from tests.griffin.experiments.data import SAMPLES, write_data
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
HALF = griffin(0.5)


@pytest.fixture
def study(model: PreTrainedModel, smollm2: Checkpoint, tmp_path: Path) -> Study:
    """A study of a tiny model of each type. The tokenizer is another model's: only token ids count here."""
    return Study(Checkpoint("tiny", model, smollm2.tokenizer), write_data(tmp_path / "data"), tmp_path / "tiny")


@pytest.fixture(scope="module")
def words(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of a tiny model with SmolLM2's vocabulary."""
    model = tiny_model("llama", vocab_size=49152, max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("words")
    return Study(Checkpoint("tiny", model, smollm2.tokenizer), write_data(folder / "data"), folder / "tiny")


def test_scores_simulate_generation(study: Study, prompts: Prompts) -> None:
    """Section 5.1, in every family: the full model scores an answer except its last token, kept neurons that token."""
    model = study.checkpoint.model
    context, answers = prompts(1, 14), [prompts(2, 1), prompts(3, 4)]
    simulation.score(study, [FULL, HALF], [(context, answer) for answer in answers], "test")

    for answer in answers:
        ids = torch.tensor([[*context, *answer]])
        with torch.no_grad():
            full_TV = model(ids[:, :-1]).logits[0, len(context) - 1 :].log_softmax(-1)
        last_V = oracle.classify(model, [*context, *answer[:-1]], 0.5).log_softmax(-1)
        full_T = full_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        found, greedy = simulation.known_score(study, FULL, context, answer)
        assert found == pytest.approx(float(full_T.sum()), abs=1e-4)
        assert greedy == (full_TV.argmax(-1).tolist() == answer)
        pruned, _ = simulation.known_score(study, HALF, context, answer)
        assert pruned == pytest.approx(float(full_T[:-1].sum() + last_V[answer[-1]]), abs=1e-4)


def test_magnitude_keeps_the_largest_weights(study: Study, prompts: Prompts) -> None:
    """Section 5.1: the same neurons for every prompt."""
    context, answer = prompts(1, 9), prompts(2, 1)
    kept = list(by_weight(feed_forwards(study.checkpoint.model)).topk(26, dim=1).indices)
    simulation.score(study, [magnitude(0.5)], [(context, answer)], "test")
    model = study.checkpoint.model
    with torch.no_grad():
        past = model(torch.tensor([context[:-1]])).past_key_values
        with oracle.masked(model, Kept(kept)):
            logits_V = model(torch.tensor([context[-1:]]), past_key_values=past).logits[0, -1]

    found, _ = simulation.known_score(study, magnitude(0.5), context, answer)
    assert found == pytest.approx(float(logits_V.log_softmax(-1)[answer[0]]), abs=1e-4)


def test_texts_are_generated_by_kept_neurons(study: Study, prompts: Prompts) -> None:
    """Greedy tokens are those of the independent GRIFFIN."""
    prompt = prompts(4, 12)
    generated, _ = oracle.generate(study.checkpoint.model, prompt, 0.5, 6)
    # Only up to the end-of-sequence token.
    generated = generated[: generated.index(2) + 1] if 2 in generated else generated
    simulation.generate(study, [FULL, HALF], [prompt], 6, (), "test")

    expected = study.tokenizer.decode(generated, skip_special_tokens=True)
    assert simulation.known_text(study, HALF, prompt, 6, ()) == expected


def test_nothing_is_computed_twice(words: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run goes on: another process reads the ledger's answers, too."""
    pairs = [([5, 6, 7, 8], [9, 10]), ([5, 6, 7, 8], [11])]
    simulation.score(words, [FULL, HALF], pairs, "test")
    simulation.generate(words, [HALF], [[5, 6, 7]], 3, ["x"], "test")
    again = Study(words.checkpoint, words.data, words.folder)
    monkeypatch.setattr(simulation, "_scores", None)
    monkeypatch.setattr(simulation, "_text", None)
    simulation.score(again, [FULL, HALF], pairs, "test")
    simulation.generate(again, [HALF], [[5, 6, 7]], 3, ["x"], "test")

    for variant in (FULL, HALF):
        assert simulation.known_score(again, variant, *pairs[0]) == simulation.known_score(words, variant, *pairs[0])


def test_each_text_draws_its_own(words: Study) -> None:
    """Sampling (5.3) differs from text to text, and repeats for the same text."""
    drawn = Variant("sampling", 0.5, selection="sample")

    assert drawn.pruning([1, 2, 3]).seed == drawn.pruning([1, 2, 3]).seed != drawn.pruning([1, 2, 4]).seed
    assert drawn.question() != Variant("top-k", 0.5).question() == HALF.question()
    assert name_of([1, 23]) != name_of([12, 3])


def test_the_full_model_is_lm_evals_own(words: Study) -> None:
    """The same scores and texts as hf, lm-eval's own model class, on the same requests."""
    reference = HFLM(
        pretrained=copy.deepcopy(words.checkpoint.model), tokenizer=copy.deepcopy(words.tokenizer), batch_size=1,
        max_length=256,
    )  # fmt: skip
    ours = GriffinLM.of(words, FULL, max_length=256)
    long = "word " * 300
    scored = [("Cats are", " animals"), ("Cats are ", "fish"), ("", "A start"), (long, " cut"), (long, " in two parts")]
    scores = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(scored)]
    options = {"until": ["\n", "the"], "max_gen_toks": 8, "do_sample": False}
    texts = [Instance("generate_until", {}, (text, options), n) for n, text in enumerate(["One, two,", long])]
    expected, found = (model.loglikelihood(scores) for model in (reference, ours))

    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert ours.generate_until(texts) == reference.generate_until(texts)


def test_a_file_with_its_own_codes(smollm2: Checkpoint, tmp_path: Path) -> None:
    """Its embedding is no parameter. Its likelihoods are near those of the same values in fp32."""
    found = []
    for number, checkpoint in enumerate((load(device="cpu"), smollm2)):
        study = Study(checkpoint, None, tmp_path / str(number))
        asker = GriffinLM.of(study, FULL)
        found += asker.loglikelihood([Instance("loglikelihood", {}, ("The capital of France is", " Paris"), 0)])

    assert found[0][0] == pytest.approx(found[1][0], abs=0.05)


def test_scores_of_tasks_are_lm_evals_own(words: Study) -> None:
    """evaluate() with the full model, against simple_evaluate() with hf, for the paper's ten tasks."""
    names = CLASSIFICATION + GENERATION
    found = evaluate(words, names, [FULL, HALF], None, None)
    manager = make_manager(words.data)
    reference = HFLM(
        pretrained=copy.deepcopy(words.checkpoint.model), tokenizer=copy.deepcopy(words.tokenizer), batch_size=1
    )
    tasks = [make_task(name, words.data, manager) for name in names]
    results = lm_eval.simple_evaluate(model=reference, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    for name, task in zip(names, tasks, strict=True):
        for metric in TASKS[name].metrics:
            expected = results["results"][name][f"{metric},none"]
            assert found["scores"][name]["full"][metric] == pytest.approx(expected, abs=1e-9), (name, metric)
        assert found["tasks"][name]["items"] == len(task.eval_docs)
    assert found["scores"]["hellaswag"]["full"]["acc_stderr"] >= 0


def test_functions_and_word_problems(smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method answers and is scored with errors. They are not among the paper's tasks. Stopped runs go on."""
    heads = [sample["prompt"] for sample in SAMPLES["humaneval"]]
    monkeypatch.setattr(sandbox, "passes", lambda program: not program.startswith(heads[0]))
    model = tiny_model("llama", vocab_size=49152, max_position_embeddings=1024)
    study = Study(Checkpoint("tiny", model, smollm2.tokenizer), write_data(tmp_path / "data"), tmp_path / "tiny")
    variants = [FULL, HALF, plus(0.5)]
    found = evaluate(study, REASONING, variants, 2, None)
    monkeypatch.setattr(simulation, "_text", None)
    again = evaluate(Study(study.checkpoint, study.data, study.folder), REASONING, variants, 2, None)

    assert again == found
    assert not set(REASONING) & {*CLASSIFICATION, *GENERATION}
    assert {task: facts["items"] for task, facts in found["tasks"].items()} == {"humaneval": 2, "arithmetic": 2}
    for variant in variants:
        scores = found["scores"]["humaneval"][variant.name]
        assert (scores["pass@1"], scores["pass@1_stderr"]) == (0.5, pytest.approx(0.5))
        assert set(found["scores"]["arithmetic"][variant.name]) >= {"em", "em_stderr"}
    assert "HumanEval pass@1" in score_table(found).text()


def test_how_likely_the_right_answers_are(words: Study) -> None:
    """The excess over the full model's loss, from the scores of the right answers."""
    found = evaluate(words, ["arc_easy", "coqa"], [FULL, HALF], None, None)["scores"]
    asker, excess = GriffinLM.of(words, FULL), []
    for context, answer in (("Question: What is frozen water?", " ice"), ("Question: Which animal can fly?", " bird")):
        pair = asker._encode_pair(f"{context}\nAnswer:", answer)
        excess.append(simulation.known_score(words, FULL, *pair)[0] - simulation.known_score(words, HALF, *pair)[0])

    assert (found["arc_easy"]["full"]["excess"], found["arc_easy"]["full"]["excess_stderr"]) == (0, 0)
    half = found["arc_easy"][HALF.name]
    assert half["excess"] == pytest.approx(sum(excess) / 2)
    assert half["excess_stderr"] == pytest.approx(abs(excess[0] - excess[1]) / 2)
    assert "excess" not in found["coqa"][HALF.name]


def test_lm_eval_finds_the_registered_model(words: Study, tmp_path: Path) -> None:
    """By its name, with its settings as text, on a task of lm-eval's own kind."""
    folder = tmp_path / "checkpoint"
    words.checkpoint.model.save_pretrained(folder)
    words.tokenizer.save_pretrained(folder)

    manager = make_manager(words.data)
    results = lm_eval.simple_evaluate(
        model="griffin",
        model_args=f"pretrained={folder},sparsity=0.5,dtype=float32,device=cpu,out={tmp_path / 'out'}",
        tasks=[make_task("piqa", words.data, manager)], task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip

    assert results is not None
    assert not math.isnan(results["results"]["piqa"]["acc,none"])
    assert (tmp_path / "out/checkpoint/ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample is not supported"),
        ({"max_gen_toks": 512}, "512 leaves no room in a context of 512 tokens"),
    ],
)
def test_what_it_cannot_do(words: Study, options: dict[str, object], message: str) -> None:
    """It is an error, instead of another answer."""
    with pytest.raises(ValueError, match=message):
        GriffinLM.of(words, HALF).generate_until([Instance("generate_until", {}, ("One", options), 0)])


def test_what_is_refused(words: Study) -> None:
    """A misspelt flag, which would otherwise be a dense run; whole texts; an answer without room for a prompt."""
    with pytest.raises(TypeError, match="sparsitty"):
        GriffinLM(sparsitty=0.5)
    with pytest.raises(ValueError, match="sparsity must be at least 0 and below 1"):
        GriffinLM(sparsity=1.5)
    with pytest.raises(ValueError, match="answers to prompts, not whole texts"):
        GriffinLM.of(words, HALF).loglikelihood_rolling([])
    with pytest.raises(ValueError, match="an answer of 4 tokens leaves no room for a prompt in 3"):
        GriffinLM.of(words, HALF, max_length=3).loglikelihood([Instance("loglikelihood", {}, ("One", " 2 3"), 0)])


def test_prompts_that_are_cut_are_counted(words: Study) -> None:
    """They are cut as lm-eval cuts them, and the table says how many."""
    found = evaluate(words, ["xsum", "piqa"], [FULL], None, 80)
    table = score_table(found).text()

    assert (found["tasks"]["xsum"]["cut"], found["tasks"]["piqa"]["cut"]) == (2, 0)
    assert "prompts cut to 80 tokens" in table


def test_a_constant_answer_is_chance(words: Study, tmp_path: Path) -> None:
    """Two of three answers are yes, so a constant yes scores 2/3. Other choices differ by item."""
    items = [{"passage": "p", "question": f"q{number}?", "label": int(number > 0)} for number in range(3)]
    study = Study(words.checkpoint, write_data(tmp_path / "d", boolq=items), tmp_path / "out")

    assert evaluate(study, ["boolq"], [FULL], None, None)["tasks"]["boolq"]["chance"] == pytest.approx(2 / 3)
    assert evaluate(words, ["boolq"], [FULL], None, None)["tasks"]["boolq"]["chance"] == 0.5
    assert evaluate(words, ["piqa"], [FULL], None, None)["tasks"]["piqa"]["chance"] == 0.5


@pytest.mark.parametrize("changed", ["a weight", "a setting", "an end"])
def test_another_model_is_another_ledger(changed: str, words: Study, tmp_path: Path) -> None:
    """An answer depends on every weight, the configuration and the ends of a text."""
    model = copy.deepcopy(words.checkpoint.model)
    if changed == "a weight":
        model.model.layers[1].mlp.down_proj.weight.data[7, 5] += 0.01
    elif changed == "a setting":
        model.config.rms_norm_eps = 0.5
    else:
        model.generation_config.eos_token_id = [2, 3]
    other = Study(Checkpoint("tiny", model, words.tokenizer), None, tmp_path)

    assert other.facts()["identity"] != words.facts()["identity"]
    same = Study(Checkpoint("other name", copy.deepcopy(words.checkpoint.model), words.tokenizer), None, tmp_path)
    assert same.facts()["identity"] == words.facts()["identity"]
