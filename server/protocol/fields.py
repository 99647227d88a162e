"""Forms and limits of single fields. Each refusal says in a sentence what the field may be."""

from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 32
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
# Many more keys than any API has.
MAX_KEYS = 256
MAX_NODES = 1024
# More than any context has tokens. Larger values mean the same, and all sums of such values fit.
MAX_COUNT = 2**31 - 1
UNLIMITED = -1
EMPTY_PROMPT = "must not be empty, nor may any of its parts"


def refuse(param: str, why: str, code: str = "invalid_value") -> NoReturn:
    """Raise an error that names the field itself. pydantic's own errors name only the validator's field.

    Args:
        param: the field, relative to the validator's field: ``role`` of a message, ``[2].text`` of a list.
        why: the text after the field's name.
    """
    raise PydanticCustomError("refused", "{why}", {"param": param, "why": why, "code": code})


def whole(value: object) -> object:
    """JSON has only one kind of number: 1.0 is the integer 1."""
    return int(value) if type(value) is float and value.is_integer() else value


def whole_items(value: Any) -> Any:
    return [whole(item) for item in value] if isinstance(value, list) and float in set(map(type, value)) else value


def clamped(value: int) -> int:
    return min(value, MAX_COUNT)


def _prompts(value: Any) -> list[str | list[int]]:
    """Each of OpenAI's four forms of a prompt becomes a list of texts and lists of ids."""
    value = whole_items(value)
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(item) is int for item in value)):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
    if not value:
        raise ValueError("must not be empty")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"has {len(value)} prompts; at most {MAX_PROMPTS} are supported")
    prompts: list[str | list[int]] = [whole_items(prompt) for prompt in value]
    for prompt in prompts:
        is_ids = isinstance(prompt, list) and all(type(item) is int for item in prompt)
        if not isinstance(prompt, str) and not is_ids:
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
        # Whether an empty text is allowed depends on other fields of the request.
        if prompt == []:
            raise ValueError(EMPTY_PROMPT)
        require_unicode(prompt)
    return prompts


def _stop(value: object) -> list[str]:
    """A list of stop strings. An empty string instead of a list means none; inside a list it is an error."""
    listed = [value] if isinstance(value, str) and value else [] if value is None or value == "" else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise ValueError("must be a string or a list of non-empty strings")
    if len(listed) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are supported")
    if any(len(item) > MAX_STOP_LENGTH for item in listed):
        raise ValueError(f"at most {MAX_STOP_LENGTH} characters each are supported")
    require_unicode(*listed)
    return listed


def _logit_bias(value: object) -> dict[int, float]:
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object from token ids to numbers")
    if len(value) > MAX_BIASED_TOKENS:
        raise ValueError(f"has {len(value)} tokens; at most {MAX_BIASED_TOKENS} are supported")
    bias: dict[int, float] = {}
    for key, number in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 12):
            raise ValueError('its keys must be token ids, such as "50256"')
        if isinstance(number, bool) or not isinstance(number, int | float) or not -100 <= number <= 100:
            raise ValueError("its values must be numbers from -100 to 100")
        bias[int(key)] = float(number)
    return bias


def _sparsity(value: object) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError("must be a number from 0 to below 1, or 'auto'")
    # JSON allows -0; drop its sign.
    return float(value) + 0.0


def few_keys(value: Any) -> Any:
    """Refuse a body with too many keys: each unknown key would cost an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"has {len(value)} keys; at most {MAX_KEYS} are supported")
    return value


def small(value: Any, most: int = MAX_NODES) -> Any:
    """Refuse a free-form value that has too many names and values, or that UTF-8 cannot encode."""
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        inside = [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else ()
        count += len(inside) + 1
        if count > most:
            raise ValueError(f"has more than {most} names and values")
        require_unicode(item)
        pending += inside
    return value


def require_unicode(*values: object) -> None:
    """Refuse half a surrogate pair: JSON can spell it, but it is not a character and UTF-8 cannot encode it."""
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at position {error.start}, which is not a character") from None


def unicode_text(value: object) -> object:
    require_unicode(value)
    return value


_ID = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_STOP = {"type": "string", "maxLength": MAX_STOP_LENGTH}
_IDS = {"type": "array", "items": _ID, "minItems": 1}

Text = Annotated[str, BeforeValidator(unicode_text)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(fail_fast=True), BeforeValidator(whole_items)
]
# An integer, or a number such as 1.0. Limits precede it: Annotated[int, Field(ge=1), Whole].
Whole = BeforeValidator(whole)
Clamped = AfterValidator(clamped)
Count = Annotated[int, Field(ge=0), Clamped, Whole]
Prompts = Annotated[
    list[str | list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _IDS,
                {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]
Stop = Annotated[
    list[str],
    PlainValidator(_stop),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP,
                {"type": "array", "items": {**_STOP, "minLength": 1}, "maxItems": MAX_STOP_STRINGS},
                {"type": "null"},
            ]
        }
    ),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_logit_bias),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]{1,11}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                    "maxProperties": MAX_BIASED_TOKENS,
                },
                {"type": "array", "maxItems": 0},
                {"type": "null"},
            ]
        }
    ),
]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
# A number, or auto: found for the prompt.
SparsityChoice = Annotated[
    float | Literal["auto"],
    PlainValidator(_sparsity),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"const": "auto"}]}),
]


def _limit(lowest: int, unlimited: str) -> Any:
    allowed = f"must be {lowest} or more, or {UNLIMITED} for {unlimited}"

    def in_range(value: int) -> int:
        if value < lowest and value != UNLIMITED:
            raise ValueError(allowed)
        return clamped(value)

    schema: dict[str, Any] = {"type": "integer", "minimum": UNLIMITED}
    if lowest > 0:
        schema["not"] = {"const": 0}
    return Annotated[int, AfterValidator(in_range), Whole, WithJsonSchema(schema)]


Limit = _limit(0, "no limit")
PositiveLimit = _limit(1, "no limit")
Kept = _limit(1, "as many as fit")


def no_seed(value: int) -> int | None:
    """vLLM and llama.cpp take -1 for no seed."""
    return None if value == -1 else value


# An empty name counts as absent.
ModelName = Annotated[str | None, AfterValidator(lambda name: name or None)]
Seed = Annotated[int, AfterValidator(no_seed), Whole]
