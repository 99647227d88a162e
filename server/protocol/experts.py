"""GET /v1/griffin/experts/{expert_set}"""

from typing import Literal

from pydantic import BaseModel, Field


class ExpertSet(BaseModel):
    """The feed-forward neurons that were kept for one prompt."""

    object: Literal["griffin.experts"] = "griffin.experts"
    expert_set: str
    model: str
    layers: int
    neurons_per_layer: int
    kept_per_layer: list[int] = Field(description="for each layer how many")
    prompt_tokens: int = Field(description="that the neurons were chosen on")
    kept: list[list[int]] = Field(description="for each layer the indices of its kept neurons, from 0, sorted")
