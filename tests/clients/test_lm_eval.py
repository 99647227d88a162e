"""EleutherAI's lm-evaluation-harness: scores through the server are those of the model itself."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import httpx
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import Variant
from griffin.experiments.tasks.harness import GriffinLM
from griffin.model.loading import Checkpoint
from griffin.request import DEFAULT_METHOD, StatisticName
from tests.clients.common import MODEL

CHOICES: list[tuple[str, list[str], int]] = [
    ("The capital of France is", ["Paris, a city on the Seine", "Berlin, a city on the Spree"], 0),
    ("Water freezes at", ["one hundred degrees Celsius", "zero degrees Celsius"], 1),
    ("A triangle has", ["three sides and three angles", "seven sides and no angles"], 0),
    ("The opposite of hot is", ["extremely warm weather", "cold", "the colour of ice cream"], 1),
    ("Bees make", ["honey from the nectar of flowers", "steel from iron and coal"], 0),
    ("The sun rises in", ["the far west", "the east", "the middle of the night"], 1),
    ("Shakespeare wrote", ["the play Romeo and Juliet", "the first computer program"], 0),
    ("Fish breathe with", ["their wooden legs", "feathers", "their gills"], 2),
]
QUESTIONS = ["The capital of Italy is", "One, two, three, four,", "The colours of the rainbow are red, orange,"]
TASKS: dict[str, dict[str, Any]] = {
    "griffin_choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "griffin_texts": {
        "output_type": "generate_until",
        "doc_to_target": "nothing",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "griffin_choices": [{"text": text, "choices": choices, "answer": answer} for text, choices, answer in CHOICES],
    "griffin_texts": [{"text": text} for text in QUESTIONS],
}

PLUS = Variant("pruned", 0.5, method=DEFAULT_METHOD)

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the model's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    smollm2.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """simple_evaluate for one of the two tasks above. Each is written as a YAML file and its data, like any task."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, ROWS[name])))
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "doc_to_text": "{{text}}", **where, **task}))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def on(task: str, model: Any, **options: Any) -> dict[str, Any]:
        results = lm_eval.simple_evaluate(
            model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, **options
        )
        assert results is not None
        answers: dict[str, Any] = {
            "responses": [sample["filtered_resps"] for sample in results["samples"][task]],
            **results["results"][task],
        }
        return answers

    return on


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep data sets in the test's folder, not in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def in_process(smollm2: Checkpoint, tokenizer: str) -> HFLM:
    """The model in lm-eval's own class. It gets copies, because it changes its arguments."""
    return HFLM(
        pretrained=copy.deepcopy(smollm2.model), tokenizer=AutoTokenizer.from_pretrained(tokenizer), batch_size=1
    )


@pytest.fixture
def completions(url: str, tokenizer: str) -> dict[str, Any]:
    return {
        "model": MODEL, "base_url": f"{url}/v1/completions", "tokenizer_backend": "huggingface",
        "tokenizer": tokenizer, "max_retries": 1,
    }  # fmt: skip


def scores(result: dict[str, Any]) -> list[float]:
    return [float(score) for response in result["responses"] for score, _ in response]


def greedy(result: dict[str, Any]) -> list[bool]:
    return [is_greedy for response in result["responses"] for _, is_greedy in response]


@pytest.fixture(scope="module")
def expected(evaluate: Evaluate, in_process: HFLM) -> dict[str, dict[str, Any]]:
    """The results of the in-process model, by task."""
    return {task: evaluate(task, in_process) for task in TASKS}


def test_scores_are_those_of_the_model_in_process(
    evaluate: Evaluate, completions: dict[str, Any], expected: dict[str, dict[str, Any]]
) -> None:
    """For the dense model each choice has the same log-likelihood, and the accuracy is the same."""
    result = evaluate("griffin_choices", "local-completions", model_args=completions)
    reference = expected["griffin_choices"]

    assert len(scores(result)) == sum(len(choices) for _, choices, _ in CHOICES)
    assert scores(result) == pytest.approx(scores(reference), abs=2e-2)
    assert greedy(result) == greedy(reference)
    assert result["acc,none"] == reference["acc,none"] > 0.5


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 4}, {"num_concurrent": 4}, {"tokenized_requests": False}],
    ids=["batches", "side by side", "texts"],
)
def test_scores_do_not_depend_on_the_form_of_requests(
    evaluate: Evaluate, completions: dict[str, Any], expected: dict[str, dict[str, Any]], options: dict[str, Any]
) -> None:
    """Several prompts in a request, parallel requests, and texts instead of ids."""
    result = evaluate("griffin_choices", "local-completions", model_args={**completions, **options})

    assert scores(result) == pytest.approx(scores(expected["griffin_choices"]), abs=2e-2)


def test_the_servers_own_tokenizer(
    evaluate: Evaluate, url: str, completions: dict[str, Any], expected: dict[str, dict[str, Any]]
) -> None:
    """The remote tokenizer, which "auto" selects, needs no files and gives the same scores."""
    remote = {"model": MODEL, "base_url": completions["base_url"], "tokenizer_backend": "auto", "max_retries": 1}
    result = evaluate("griffin_choices", "local-completions", model_args=remote)

    assert scores(result) == pytest.approx(scores(expected["griffin_choices"]), abs=2e-2)
    assert result["acc,none"] == expected["griffin_choices"]["acc,none"]


def test_scores_of_the_pruned_model_differ(
    evaluate: Evaluate, completions: dict[str, Any], expected: dict[str, dict[str, Any]]
) -> None:
    """lm-eval cannot add a field, but the model's name can select a sparsity."""
    result = evaluate(
        "griffin_choices", "local-completions", model_args={**completions, "model": f"{MODEL}@sparsity=0.5"}
    )
    differences = [
        abs(pruned - dense) for pruned, dense in zip(scores(result), scores(expected["griffin_choices"]), strict=True)
    ]

    assert min(differences) > 1e-4
    assert max(differences) > 0.5


@pytest.fixture(scope="module")
def study(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that lm-eval's griffin model uses in this process."""
    return Study(smollm2, None, tmp_path_factory.mktemp("study"))


def test_simulated_generation_equals_the_servers_sparse_scoring(
    evaluate: Evaluate, study: Study, completions: dict[str, Any]
) -> None:
    """With the default method, lm-eval's griffin model masks activations and the server skips weights: scores
    agree.

    A few scores differ: rounding moves values near a threshold to either side, so a token then reads other weights.
    """
    result = evaluate("griffin_choices", GriffinLM.of(study, PLUS))
    served = evaluate(
        "griffin_choices", "local-completions", model_args={**completions, "model": f"{MODEL}@sparsity=0.5"}
    )

    differences = [abs(one - other) for one, other in zip(scores(result), scores(served), strict=True)]
    assert sum(each < 2e-2 for each in differences) > 2 / 3 * len(differences)
    assert max(differences) < 1
    assert sum(one == other for one, other in zip(greedy(result), greedy(served), strict=True)) > len(differences) - 3


@pytest.mark.parametrize("statistic", ["flocking", "magnitude"])
def test_simulated_generation_of_method_griffin_equals_the_servers(
    evaluate: Evaluate, study: Study, url: str, statistic: StatisticName
) -> None:
    """With method griffin, lm-eval's model masks activations and the server gathers neurons."""
    result = evaluate("griffin_choices", GriffinLM.of(study, Variant("pruned", 0.5, statistic)))
    expected = [
        _served(url, study, context, choice, statistic) for context, choices, _ in CHOICES for choice in choices
    ]

    assert scores(result) == pytest.approx(expected, abs=2e-2)


def _served(url: str, study: Study, context: str, choice: str, statistic: str) -> float:
    """The score that a client gets by its own request, because lm-eval's client cannot name a statistic."""
    prompt = study.tokenizer(f"{context} {choice}").input_ids
    body = {
        "model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0, "sparsity": 0.5,
        "griffin": {"statistic": statistic},
    }  # fmt: skip
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    start = len(study.tokenizer(context).input_ids)
    return float(sum(answer["choices"][0]["logprobs"]["token_logprobs"][start:]))


def test_generated_texts_equal_the_servers(evaluate: Evaluate, study: Study, completions: dict[str, Any]) -> None:
    """lm-eval's griffin model and the server generate the same texts at sparsity 0.5."""
    result = evaluate("griffin_texts", GriffinLM.of(study, PLUS))
    served = evaluate(
        "griffin_texts", "local-completions", model_args={**completions, "model": f"{MODEL}@sparsity=0.5"}
    )

    assert result["responses"] == served["responses"]


def test_greedy_texts_are_those_of_the_model_in_process(
    evaluate: Evaluate, completions: dict[str, Any], expected: dict[str, dict[str, Any]]
) -> None:
    """generate_until uses /v1/completions."""
    result = evaluate("griffin_texts", "local-completions", model_args=completions)

    assert result["responses"] == expected["griffin_texts"]["responses"]
    assert all(text.strip() for response in result["responses"] for text in response)


def test_texts_of_the_pruned_model(evaluate: Evaluate, completions: dict[str, Any]) -> None:
    """generate_until at sparsity 0.5 gives other texts than the dense model."""
    dense, half = (
        evaluate("griffin_texts", "local-completions", model_args={**completions, "model": name})["responses"]
        for name in (MODEL, f"{MODEL}@sparsity=0.5")
    )

    assert dense != half


def test_chat_texts_are_those_of_the_model_in_process(evaluate: Evaluate, in_process: HFLM, url: str) -> None:
    """generate_until uses /v1/chat/completions; the server's template is the tokenizer's."""
    reference = evaluate("griffin_texts", in_process, apply_chat_template=True)
    result = evaluate(
        "griffin_texts",
        "local-chat-completions",
        model_args={"model": MODEL, "base_url": f"{url}/v1/chat/completions", "max_retries": 1},
        apply_chat_template=True,
    )

    assert result["responses"] == reference["responses"]
