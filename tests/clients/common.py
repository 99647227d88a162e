"""Requests that the tests of all clients send, and the server's own count of pruned tokens."""

from tests.server.client import metric

MODEL = "SmolLM2-135M-Instruct"
CODER = "qwen2.5-coder-1.5b"
PROMPT = (
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water. "
    "In short, plants need sunlight because"
)
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


def tokens_at(url: str, sparsity: float) -> float:
    """The tokens generated so far at a sparsity. They show that a request was pruned if the client does not."""
    return metric(url, "griffin_generation_tokens_total", sparsity=f"{sparsity:g}")
