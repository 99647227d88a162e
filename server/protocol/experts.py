"""GET /v1/griffin/experts/{expert_set}"""

from typing import Literal

from pydantic import BaseModel, Field

from griffin.request import MethodName


class ExpertSet(BaseModel):
    """The choice made for one prompt; with method griffin, the feed-forward neurons that are kept."""

    object: Literal["griffin.experts"] = "griffin.experts"
    expert_set: str
    model: str
    layers: int
    neurons_per_layer: int
    method: MethodName = Field(description="with griffin+ no neuron is removed: each token picks what it reads")
    kept_per_layer: list[int] | None = Field(description="kept neurons in each layer; null with griffin+")
    prompt_tokens: int = Field(description="number of tokens on which the choice was made")
    kept: list[list[int]] | None = Field(
        description="for each layer, the sorted indices of its kept neurons, from 0; null with griffin+"
    )
