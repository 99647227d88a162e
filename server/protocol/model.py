"""GET /v1/models"""

from typing import Literal

from pydantic import BaseModel, Field

from server.protocol.fields import SparsityChoice


class Parameters(BaseModel):
    total: int
    feed_forward: int
    active: int | None = Field(
        description="that take part in each generated token after the first; null where each prompt has its own"
    )


class TokenBytes(BaseModel):
    """Bytes of weights that one generated token reads, on average; keys and values come on top."""

    total: int = Field(description="of the full model")
    feed_forward: int = Field(description="those of them that sparsity applies to")
    active: int | None = Field(description="after the first token; null where each prompt has its own")


class SamplingDefaults(BaseModel):
    """What applies where a request names no value: the model's own, or else the neutral ones."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int | None = Field(description="of conversations; null: the rest of the context")


class ModelCard(BaseModel):
    """A model, or an alias of it that runs at a sparsity of its own."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "griffin"
    root: str = Field(description="the model's first name")
    parent: str | None = Field(description="of an alias, the name that it is an alias of")
    loaded: bool = Field(description="whether it is in memory now; else the first request loads it")
    max_model_len: int | None = Field(
        default=None,
        description="null while it is not loaded, and so are sampling_defaults, parameters and bytes_per_token",
    )
    sparsity: SparsityChoice = Field(description="of requests under this name that say nothing else")
    sampling_defaults: SamplingDefaults | None = None
    parameters: Parameters | None = None
    bytes_per_token: TokenBytes | None = None
    aliases: list[str] = Field(description="this name at other sparsities; any from 0 to below 1 works")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
