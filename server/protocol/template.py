"""Options for a chat template, besides messages and tools."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from server.protocol.fields import MAX_NODES, Whole, refuse, small

# Names that configure the rendering itself. Above all, a client's own template would be a program of the client's.
NOT_THE_TEMPLATES = {
    "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "messages", "self", "chat",
    "conversation", "conversations", "sanitize_control_tokens",
}  # fmt: skip
# For the JSON schema of chat_template_kwargs.
RESERVED: dict[str, Any] = {"propertyNames": {"not": {"enum": sorted(NOT_THE_TEMPLATES)}}}


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ReasoningTokens = Annotated[int, Field(ge=0), Whole]


class TemplateOptions(BaseModel):
    """A prompt ends where the answer begins, unless the body says otherwise."""

    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(small)] = Field(
        default=None,
        description=f"passed to the model's template; at most {MAX_NODES} names and values",
        json_schema_extra=RESERVED,
    )

    @model_validator(mode="after")
    def _only_the_templates(self) -> Self:
        if reserved := NOT_THE_TEMPLATES & set(self.chat_template_kwargs or {}):
            refuse("chat_template_kwargs", f"{min(reserved)} is not an option of the template")
        return self

    # The field with which a request asks for thoughts.
    thinking_field: ClassVar = ""

    @property
    def thinks(self) -> bool:
        """Whether the request asks for thoughts."""
        return False

    def thinking_options(self) -> dict[str, Any]:
        """Options about thinking, from the API's own fields."""
        return {}

    def template_options(self) -> dict[str, Any]:
        ends = {"add_generation_prompt": True, "continue_final_message": False}
        return {**self.thinking_options(), **(self.chat_template_kwargs or {}), **ends}


def effort_options(effort: Effort | None) -> dict[str, Any]:
    """Options for an effort of reasoning."""
    if effort is None:
        return {}
    return {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
