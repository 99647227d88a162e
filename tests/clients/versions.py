"""The clients that are tested and their installed versions. curl is the machine's own."""

from importlib.metadata import version

from tests.clients.python import pinned

# The newest versions that run on Node 20; later ones need Node 22.
NPM_OPENAI = "6.49.0"
# The AI SDK, its two providers for servers like OpenAI's, and the library for schemas.
NPM_AI = {
    "ai": "6.0.325",
    "@ai-sdk/openai-compatible": "2.0.92",
    "@ai-sdk/openai": "3.0.141",
    "zod": "4.6.7",
}

TESTED = {name: version(name) for name in ("openai", "anthropic", "litellm", "langchain-openai", "lm-eval")} | {
    "npm openai": NPM_OPENAI,
    "npm ai": NPM_AI["ai"],
    **{name: pinned(name) for name in ("instructor", "llama-index-llms-openai-like")},
}
