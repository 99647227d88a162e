"""Forms and limits of single fields, each refused with a sentence that says what it may be."""

from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 32
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
# Far more keys than any API has.
MAX_KEYS = 256
MAX_NODES = 1024


def refuse(param: str, message: str, code: str = "invalid_value") -> NoReturn:
    """For rules between fields, where pydantic itself would name none."""
    raise PydanticCustomError("refused", "{message}", {"param": param, "message": message, "code": code})


def _prompts(value: object) -> list[str | list[int]]:
    """All four forms of OpenAI's become a list of texts and lists of ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(item) is int for item in value)):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
    if not value:
        raise ValueError("must not be empty")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"has {len(value)} prompts; at most {MAX_PROMPTS} are supported")
    for prompt in value:
        is_ids = isinstance(prompt, list) and all(type(item) is int for item in prompt)
        if not isinstance(prompt, str) and not is_ids:
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
        if not prompt:
            raise ValueError("must not be empty, nor may any of its parts")
        require_unicode(prompt)
    return value


def _stop(value: object) -> list[str]:
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise ValueError("must be a non-empty string or a list of them")
    if len(listed) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are supported")
    if any(len(item) > MAX_STOP_LENGTH for item in listed):
        raise ValueError(f"at most {MAX_STOP_LENGTH} characters each are supported")
    require_unicode(*listed)
    return listed


def _logit_bias(value: object) -> dict[int, float]:
    if value is None:
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


def few_keys(value: Any) -> Any:
    """Each unknown key would cost an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"has {len(value)} keys")
    return value


def small(value: Any) -> Any:
    """For values that may be anything: nothing in them is worth a second of the server's time."""
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        inside = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else ()
        count += len(inside) + 1
        if count > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES} values")
        pending += inside
    return value


def require_unicode(*values: object) -> None:
    """JSON can spell half a surrogate pair, which is no character and has no UTF-8."""
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
_IDS = {"type": "array", "items": _ID, "minItems": 1}

Text = Annotated[str, BeforeValidator(unicode_text)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompts = Annotated[
    list[str | list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_PROMPTS},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]
Stop = Annotated[
    list[str],
    PlainValidator(_stop),
    WithJsonSchema(
        {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MAX_STOP_STRINGS}, {"type": "null"}]}
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
                {"type": "null"},
            ]
        }
    ),
]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Sparsity = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
# A number, or to be found for the prompt.
SparsityChoice = Sparsity | Literal["auto"]


def asks_for_nothing(value: Any, nothing: tuple[Any, ...]) -> bool:
    """Whether a field that cannot be honoured is there in name only. True is not 1 here."""
    return value is None or any(type(value) is type(none) and value == none for none in nothing)
