"""GET /v1/griffin/experts/{expert_set}"""

from typing import Literal

from pydantic import BaseModel, Field

from griffin.request import MethodName


class ExpertSet(BaseModel):
    """What was chosen for one prompt: by method griffin, the feed-forward neurons that were kept."""

    object: Literal["griffin.experts"] = "griffin.experts"
    expert_set: str
    model: str
    layers: int
    neurons_per_layer: int
    method: MethodName = Field(description="by griffin+ no neuron is removed: each token picks what it reads")
    kept_per_layer: list[int] | None = Field(description="for each layer how many; null by griffin+")
    prompt_tokens: int = Field(description="that it was chosen on")
    kept: list[list[int]] | None = Field(
        description="for each layer the indices of its kept neurons, from 0, sorted; null by griffin+"
    )
