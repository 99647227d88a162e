"""The form that an answer must have: OpenAI's ``response_format``, vLLM's ``structured_outputs``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.protocol.fields import Text, few_keys, refuse
from server.protocol.strict import fault

# Characters of a whole form as JSON.
MAX_FORM = 2**17

FormKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
# Fields that other servers have and this one has not, and what to send instead.
NOT_HERE: Mapping[str, str] = {
    "whitespace_pattern": "is not supported; JSON is written on one line, with a space after , and :",
    "structural_tag": "is not supported; use grammar",
    "disable_additional_properties": 'is not supported; write "additionalProperties": false into the schema',
}


@dataclass(frozen=True, slots=True)
class Form:
    """The form that an answer must have.

    value: a JSON schema as an object, a regular expression, a list of texts, or a grammar; None for any JSON object.
    param: the field that it came from.
    """

    kind: FormKind
    value: Any
    param: str


def _limited(value: Any) -> Any:
    if len(json.dumps(value)) > MAX_FORM:
        raise ValueError(f"is longer than {MAX_FORM} characters")
    return value


def _schema(value: Any) -> Any:
    """vLLM also takes a schema as a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON schema: an object, or a text with one") from None


JsonSchema = Annotated[dict[str, Any], AfterValidator(_limited)]


class JsonSchemaFormat(BaseModel):
    """A schema and its name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = Field(default=None, description="accepted; has no effect")
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = Field(
        default=None,
        description="true requires a schema of OpenAI's strict mode; the answer follows the schema in any case",
    )

    _few_keys = model_validator(mode="before")(few_keys)


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Annotated[
        Literal["text", "json_object", "json_schema"], BeforeValidator(lambda value: _known_type(value))
    ] = Field(description="json_object: any JSON object; the prompt should ask for JSON")
    json_schema: JsonSchemaFormat | None = None

    _few_keys = model_validator(mode="before")(few_keys)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            refuse("json_schema", "is required with type json_schema", "missing_required_parameter")
        if self.type != "json_schema" and self.json_schema is not None:
            refuse("json_schema", "only with type json_schema")
        if self.json_schema and self.json_schema.strict and (found := fault(self.json_schema.schema_)):
            refuse("", f"invalid schema for response_format '{self.json_schema.name}': {found}")
        return self

    def form(self) -> Form | None:
        if self.json_schema is not None:
            return Form("json_schema", self.json_schema.schema_, "response_format")
        return Form("json_object", None, "response_format") if self.type == "json_object" else None


def _known_type(value: object) -> object:
    if value == "structural_tag":
        refuse("", "structural_tag is not supported; use structured_outputs.grammar", "unsupported_parameter")
    return value


class StructuredOutputs(BaseModel):
    """Exactly one of these forms."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: Annotated[dict[str, Any] | None, AfterValidator(_limited), BeforeValidator(_schema)] = Field(
        default=None, alias="json", description="a JSON schema: an object, or a text with one"
    )
    json_object: bool | None = Field(default=None, description="any JSON object")
    regex: Annotated[Text | None, AfterValidator(_limited)] = Field(
        default=None, description="matches the whole answer; Rust's syntax, without look-around and back references"
    )
    choice: Annotated[list[Text] | None, Field(min_length=1), AfterValidator(_limited)] = Field(
        default=None, description="the answer is one of these texts"
    )
    grammar: Annotated[Text | None, AfterValidator(_limited)] = Field(
        default=None, description="in Lark's form, with the start rule start; or in GBNF, with the start rule root"
    )
    disable_fallback: bool | None = Field(default=None, description="accepted; there is no fallback")
    disable_any_whitespace: bool | None = Field(default=None, description="accepted; JSON is written on one line")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        few_keys(value)
        for name, instead in NOT_HERE.items():
            if isinstance(value, dict) and value.get(name):
                refuse(name, instead, "unsupported_parameter")
        return {key: own for key, own in value.items() if key not in NOT_HERE} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = self._given()
        if len(given) > 1:
            refuse("", f"has {' and '.join(form.param.rpartition('.')[2] for form in given)}; leave all but one out")
        return self

    def _given(self) -> list[Form]:
        values: dict[str, tuple[FormKind, Any]] = {
            "json": ("json_schema", self.json_),
            "json_object": ("json_object", self.json_object or None),
            "regex": ("regex", self.regex),
            "choice": ("choice", self.choice),
            "grammar": ("grammar", self.grammar),
        }
        return [
            Form(kind, None if kind == "json_object" else value, f"structured_outputs.{name}")
            for name, (kind, value) in values.items()
            if value is not None
        ]

    def form(self) -> Form | None:
        """The form that is set; None if there is none, as in an empty object."""
        return next(iter(self._given()), None)


def refuse_beside(form: Form, name: str, why: str) -> NoReturn:
    """Refuse a field that cannot be combined with a form."""
    refuse(name, f"not with {form.param.partition('.')[0]}, {why}; leave it out")
