"""The clients that are tested, in the versions that are installed; curl is whatever the machine has."""

from importlib.metadata import version

from tests.clients.python import pinned

# The newest that run on Node 20; later ones ask for Node 22.
NPM_OPENAI = "6.49.0"
# The AI SDK, with its two ways to servers of OpenAI's kind, and what schemas are written in.
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
