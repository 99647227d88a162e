"""GET /v1/models"""

from typing import Literal

from pydantic import BaseModel, Field

from server.protocol.fields import SparsityChoice


class Parameters(BaseModel):
    total: int
    feed_forward: int
    active: int | None = Field(
        description="parameters that each generated token after the first uses; null if each prompt has its own number"
    )


class TokenBytes(BaseModel):
    """Bytes of weights that one generated token reads, on average. Keys and values are not counted."""

    total: int = Field(description="bytes of the full model")
    feed_forward: int = Field(description="the part of them that sparsity applies to")
    active: int | None = Field(description="bytes after the first token; null if each prompt has its own number")


class SamplingDefaults(BaseModel):
    """Values for requests that name none: the model's own, or else neutral ones."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int | None = Field(description="limit for conversations; null: the rest of the context")


class ModelCard(BaseModel):
    """A model, or an alias of it with its own sparsity."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "griffin"
    root: str = Field(description="the model's first name")
    parent: str | None = Field(description="for an alias: the model's name without the sparsity")
    loaded: bool = Field(description="whether the model is in memory; if not, the first request loads it")
    max_model_len: int | None = Field(
        default=None,
        description="null while the model is not loaded, like sampling_defaults, parameters and bytes_per_token",
    )
    sparsity: SparsityChoice = Field(description="sparsity of requests under this name that name none themselves")
    sampling_defaults: SamplingDefaults | None = None
    parameters: Parameters | None = None
    bytes_per_token: TokenBytes | None = None
    aliases: list[str] = Field(description="this name at other sparsities; any from 0 to below 1 works")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
