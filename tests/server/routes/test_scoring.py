"""Log-probabilities of given texts over HTTP, with the real model: dense, and as if the text had been generated."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from griffin import Checkpoint, Engine
from tests.griffin import oracle
from tests.server.client import post
from tests.server.scripted import served

TEXT = "Photosynthesis is the process by which green plants use sunlight to make food."


@pytest.fixture(scope="module")
def url(smollm2: Checkpoint) -> Iterator[str]:
    with served(Engine(smollm2.model), tokenizer=smollm2.tokenizer) as url:
        yield url


def scores(url: str, prompt: object, **body: Any) -> list[float | None]:
    answer = post(url, prompt=prompt, max_tokens=0, echo=True, **{"logprobs": 0, **body})
    assert answer.status_code == 200, answer.text
    values: list[float | None] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    return values


def test_echo_scores_are_the_models(url: str, smollm2: Checkpoint) -> None:
    """Each token's score given the tokens before it is that of a plain forward pass."""
    ids = smollm2.tokenizer(TEXT).input_ids
    with torch.inference_mode():
        logits = smollm2.model(torch.tensor([ids])).logits[0].log_softmax(dim=1)
    expected = logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    assert scores(url, TEXT)[0] is None
    assert scores(url, TEXT)[1:] == pytest.approx(expected, abs=1e-3)
    assert scores(url, TEXT, sparsity=0.0) == scores(url, ids) == scores(url, TEXT)


def test_the_papers_simulated_generation_is_the_default(url: str, smollm2: Checkpoint) -> None:
    """Kept neurons score only the last token; all tokens before it choose them (section 5.1)."""
    ids = smollm2.tokenizer(TEXT).input_ids
    dense, sparse = scores(url, TEXT), scores(url, TEXT, sparsity=0.5, griffin={"method": "griffin"})
    expected = oracle.classify(smollm2.model, ids[:-1], 0.5).log_softmax(dim=0)[ids[-1]]

    assert sparse[1:-1] == pytest.approx(dense[1:-1], abs=1e-3)
    assert sparse[-1] == pytest.approx(float(expected), abs=1e-3)
    assert abs(sparse[-1] - dense[-1]) > 0.05


def test_a_generated_answer_scores_as_it_was_generated(url: str, smollm2: Checkpoint) -> None:
    """The neurons and log-probabilities are the same, whether the tokens were drawn or given."""
    ids = smollm2.tokenizer(TEXT).input_ids
    ask = {"sparsity": 0.5, "logprobs": 0, "temperature": 0, "return_token_ids": True}
    generated = post(url, prompt=ids, max_tokens=12, **ask).json()
    (choice,) = generated["choices"]
    text = [*ids, *choice["token_ids"]]
    given = post(url, prompt=text, max_tokens=0, echo=True, griffin={"prompt_tokens": len(ids)}, **ask).json()

    assert given["griffin"]["expert_set"] == generated["griffin"]["expert_set"]
    assert given["griffin"]["prompt_tokens"] == len(ids)
    scored = given["choices"][0]["logprobs"]["token_logprobs"][len(ids) :]
    assert scored == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3)


def test_one_token_needs_no_kept_neurons(url: str) -> None:
    """The report says so. Times are there, although no token was generated."""
    answer = post(url, prompt="a", max_tokens=0, echo=True, logprobs=0, sparsity=0.9).json()

    assert (answer["griffin"]["sparsity"], answer["griffin"]["reason"]) == (0.0, "nothing_generated")
    assert answer["metrics"]["prefill_time_ms"] > 0
    assert answer["metrics"]["time_to_first_token_ms"] is None


def test_a_score_reports_a_sparsity_that_rounds_to_dense(url: str) -> None:
    """No token is generated, but the report gives the rounding as the reason."""
    answers = [
        post(url, prompt="Sheep flock.", max_tokens=0, echo=True, logprobs=0, sparsity=sparsity).json()
        for sparsity in (0.0001, 0)
    ]

    assert answers[0]["griffin"]["reason"] == "rounded_to_dense"
    assert answers[0]["choices"] == answers[1]["choices"]


def test_an_echo_that_ends_inside_a_character(url: str, smollm2: Checkpoint) -> None:
    """The first generated token completes the character, which comes once."""
    ids = smollm2.tokenizer("Repeat: \U0001f44b\U0001f44b\U0001f44b\U0001f44b").input_ids
    last = {"logit_bias": {str(ids[-1]): 100}, "temperature": 0}
    text = post(url, prompt=ids[:-1], max_tokens=1, echo=True, **last).json()["choices"][0]["text"]

    assert text == "Repeat: \U0001f44b\U0001f44b\U0001f44b\U0001f44b"


def test_lm_evals_request(url: str, smollm2: Checkpoint) -> None:
    """Lists of ids, one generated token that is scored too, and greedy means exactly the most probable token."""
    ids = smollm2.tokenizer(TEXT).input_ids
    ask = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    answer = post(url, prompt=[ids, ids[:5]], **ask).json()

    for choice, length in zip(answer["choices"], (len(ids), 5), strict=True):
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {length + 1}
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())
        assert all(top for top in logprobs["top_logprobs"][1:])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    whole, start = (choice["logprobs"]["token_logprobs"] for choice in answer["choices"])
    assert start[1:5] == pytest.approx(whole[1:5], abs=1e-3)
