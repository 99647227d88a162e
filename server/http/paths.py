"""Paths that this server does not have, and which of its own is meant: llama.cpp's, Ollama's and other spellings.

As of November 2026.
"""

from collections.abc import Collection

_CHAT, _COMPLETIONS, _MODELS = "use /v1/chat/completions", "use /v1/completions", "use /v1/models"
_ONE_MODEL = "models are named at the start, by --model; /v1/models lists them"
_EMBEDDINGS = "this server makes no embeddings"
_RANKS = "this server does not rank documents"

ELSEWHERE = {
    # llama.cpp
    "/completion": _COMPLETIONS,
    "/infill": "use /v1/completions, with suffix",
    "/apply-template": "use /tokenize, with messages",
    "/props": f"{_MODELS}, or /tokenizer_info for the template",
    "/slots": "use /metrics",
    "/lora-adapters": "this server has no adapters",
    "/embedding": _EMBEDDINGS,
    "/embeddings": _EMBEDDINGS,
    "/v1/embeddings": _EMBEDDINGS,
    "/rerank": _RANKS,
    "/reranking": _RANKS,
    "/v1/rerank": _RANKS,
    "/v1/reranking": _RANKS,
    "/models/load": _ONE_MODEL,
    "/models/unload": _ONE_MODEL,
    # Ollama
    "/api/generate": _COMPLETIONS,
    "/api/chat": _CHAT,
    "/api/tags": _MODELS,
    "/api/show": _MODELS,
    "/api/ps": _MODELS,
    "/api/version": "use /version",
    "/api/embed": _EMBEDDINGS,
    "/api/embeddings": _EMBEDDINGS,
    "/api/pull": _ONE_MODEL,
    "/api/create": _ONE_MODEL,
    "/api/delete": _ONE_MODEL,
    # text-generation-inference, and vLLM's first server
    "/generate": _COMPLETIONS,
    "/generate_stream": f"{_COMPLETIONS}, with stream=true",
    "/info": _MODELS,
}


def meant(path: str, served: Collection[str]) -> str | None:
    """What to do instead of asking for this path; None if nothing is known.

    Args:
        served: the server's own paths. One may be asked for without /v1, with it twice, or with a / at the end.
    """
    path = path.rstrip("/")
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    near = (own for own in served if len(own) > 1 and (path.endswith(own) or own == f"/v1{path}"))
    own = max(near, key=len, default=None)
    return own and f"use {own}"
