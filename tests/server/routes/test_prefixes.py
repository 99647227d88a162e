"""Prefix reuse over HTTP, in a real server, as clients and Prometheus see it."""

from pathlib import Path
from typing import Any

from tests.server import tiny_checkpoint
from tests.server.client import metric, post
from tests.server.process import running

PROMPT = "the cat sat on the mat and the dog sat on the cat and the mat " * 2


def ask(url: str, prompt: str) -> Any:
    """Use method griffin: griffin+ reads the last 128 tokens of each prompt again, and these prompts are shorter."""
    half = {"sparsity": 0.5, "griffin": {"method": "griffin"}}
    answer = post(url, prompt=prompt, max_tokens=8, temperature=0, logprobs=2, **half)
    return answer.raise_for_status().json()


def test_a_prompt_that_begins_alike_is_not_read_again(tmp_path: Path) -> None:
    """The answer and the metrics count cached tokens; the text is the same as without the cache."""
    checkpoint = str(tiny_checkpoint.write(tmp_path / "tiny"))
    chunks = ("--prefill-chunk", "8")
    with running("--model", checkpoint, *chunks, OMP_NUM_THREADS="1") as server:
        answers = [ask(server.url, PROMPT), ask(server.url, PROMPT), ask(server.url, PROMPT + "the dog")]
        queries = metric(server.url, "griffin_prefix_cache_queries_total")
        hits = metric(server.url, "griffin_prefix_cache_hits_total")
    with running("--model", checkpoint, *chunks, "--prefix-cache-mb", "0", OMP_NUM_THREADS="1") as server:
        plain = [ask(server.url, PROMPT), ask(server.url, PROMPT), ask(server.url, PROMPT + "the dog")]

    read = [answer["usage"]["prompt_tokens"] for answer in answers]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0, (read[1] - 1) // 8 * 8, read[0] // 8 * 8]
    assert (queries, hits) == (sum(read), sum(cached))
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in plain] == [0, 0, 0]
    for answer, other in zip(answers, plain, strict=True):
        assert answer["choices"] == other["choices"]
        assert answer["griffin"]["expert_set"] == other["griffin"]["expert_set"]
