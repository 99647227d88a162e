"""The clients that are tested, in the versions that are installed; curl is whatever the machine has."""

from importlib.metadata import version

# The newest that runs on Node 20; from 7 on the package asks for Node 22.
NPM_OPENAI = "6.49.0"

TESTED = {name: version(name) for name in ("openai", "anthropic", "litellm", "langchain-openai", "lm-eval")} | {
    "npm openai": NPM_OPENAI
}
