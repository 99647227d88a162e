"""POST /tokenize and /detokenize, GET /tokenizer_info, in vLLM's shapes."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.protocol.chat import TemplateRequest
from server.protocol.fields import Text, TokenId, few_keys, refuse


class Extensible(BaseModel):
    """Keys that no field answers to are accepted, and named in the answer's header."""

    model_config = ConfigDict(strict=True, extra="allow")

    _few_keys = model_validator(mode="before")(few_keys)

    def ignored(self) -> list[str]:
        return sorted(self.model_extra or {})


class TokenizeText(Extensible):
    model: str | None = None
    prompt: Text
    add_special_tokens: bool | None = True
    return_token_strs: bool | None = False


class TokenizeMessages(TemplateRequest, Extensible):
    model: str | None = None
    add_special_tokens: bool | None = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _no_tools(self) -> Self:
        if (self.model_extra or {}).get("tools"):
            refuse("tools", "tools is not supported; leave it out", "unsupported_parameter")
        return self


# Which of the two is meant is seen before either is validated: an error is about the one that was meant.
FORMS = ("form:text", "form:messages")


def _form(value: object) -> str:
    return FORMS[isinstance(value, dict) and "messages" in value]


TokenizeRequest = Annotated[
    Annotated[TokenizeText, Tag(FORMS[0])] | Annotated[TokenizeMessages, Tag(FORMS[1])], Discriminator(_form)
]


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Extensible):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=1_000_000)]


class DetokenizeResponse(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    model_max_length: int
