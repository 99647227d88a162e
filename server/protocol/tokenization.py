"""POST /tokenize and /detokenize, GET /tokenizer_info, in vLLM's shapes."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.protocol.chat import TemplateRequest
from server.protocol.elsewhere import (
    REFUSED_IN_DETOKENIZE,
    REFUSED_IN_TOKENIZE,
    Refused,
    require_supported,
    unknown,
)
from server.protocol.fields import ModelName, Text, TokenIds, few_keys
from server.protocol.request import with_refused


class Extensible(BaseModel):
    """Unknown keys are accepted, and named in the answer's header."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=with_refused)
    refused: ClassVar[Mapping[str, Refused]] = REFUSED_IN_TOKENIZE

    _few_keys = model_validator(mode="before")(few_keys)

    @model_validator(mode="after")
    def _supported(self) -> Self:
        require_supported(self.model_extra or {}, self.refused)
        return self

    def ignored(self) -> list[str]:
        return unknown(self.model_extra or {}, self.refused)


class TokenizeText(Extensible):
    model: ModelName = None
    prompt: Text
    add_special_tokens: bool | None = True
    return_token_strs: bool | None = False


class TokenizeMessages(TemplateRequest, Extensible):
    refused: ClassVar = {
        **{name: field for name, field in REFUSED_IN_TOKENIZE.items() if name != "tools"},
        "prompt": Refused((), "a request of its own"),
    }

    model: ModelName = None
    add_special_tokens: bool | None = False
    return_token_strs: bool | None = False

    def ignored(self) -> list[str]:
        return [*super().ignored(), *self.ignored_inside()]


# Which of the two forms is meant is decided before validation, so that errors are about that form.
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
    refused: ClassVar = REFUSED_IN_DETOKENIZE

    model: ModelName = None
    tokens: Annotated[TokenIds, Field(max_length=1_000_000)]


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
