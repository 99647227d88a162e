"""Samplings and short functions that the tests of sequences share."""

from collections.abc import Callable, Sequence

from griffin import Engine, Pruning, Sampling, Token, Verification

Prompts = Callable[[int, int], list[int]]
HALF = Pruning(0.5)
EVERYTHING = Sampling(
    seed=4, max_tokens=24, ignore_eos=True, temperature=0.8, top_p=0.95, top_k=60, min_p=0.001, logprobs=3,
    presence_penalty=0.5, frequency_penalty=0.4, repetition_penalty=1.1, logit_bias={9: 2.0}, min_tokens=20,
    stop_token_ids=frozenset(range(3, 30)),
)  # fmt: skip


def greedy(tokens: int = 24) -> Sampling:
    return Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def run(
    engine: Engine, prompt: list[int], sampling: Sampling, sparsity: float, verification: Verification
) -> list[Token]:
    return list(engine.generate(prompt, sampling, Pruning(sparsity), verification=verification))
