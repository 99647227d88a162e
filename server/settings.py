"""Settings: every flag and environment variable, its default and its meaning."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from griffin.request import DEFAULT_METHOD, MethodName, ModeName

PREFIX = "GRIFFIN_"
# Where Docker and Kubernetes mount secrets: a file griffin_api_keys there is as good as the variable.
SECRETS = Path("/run/secrets")
# NAME@sparsity=0.5 is the model at that sparsity, for clients that can add no field.
ALIAS = "@sparsity="
EMPTY = "is empty; give it a value, or leave it out"


class SettingsInvalid(Exception):
    """A flag or environment variable is wrong; the text is one line for a user."""


class Settings(BaseSettings):
    """OpenAI-compatible inference where each request picks its own feed-forward neurons (GRIFFIN).
    Every flag is an environment variable too: --prefill-chunk is GRIFFIN_PREFILL_CHUNK. A flag wins."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="hub id, OWNER/NAME:QUANTISATION, model directory, .gguf file, or the embedded default; "
            "NAME=... gives it a name; may be given more than once (in the variable, comma-separated): the first is "
            "loaded at the start, the others when a request asks for them",
        ),
    ] = "SmolLM2-135M-Instruct"
    memory_limit: Annotated[
        float | None,
        Field(gt=0, description="of several models, in GiB; default: one is loaded at a time"),
    ] = None
    served_model_name: Annotated[
        str | None,
        Field(description="comma-separated names in the API, the first in metrics; default: the model's own"),
    ] = None
    host: Annotated[
        str, Field(description="addresses to listen on, comma-separated; :: is every address, of IPv4 too")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    device: Annotated[str, Field(description="auto (CUDA when there is one), cpu, cuda or cuda:N")] = "auto"
    devices: Annotated[
        str | None,
        Field(
            description="instead of one device: comma-separated, a copy of the model and its workers on each; "
            "cuda:0+cuda:1 is one copy across two"
        ),
    ] = None
    ff_offload: Annotated[
        Literal["none", "cpu"],
        Field(description="cpu keeps feed-forward weights on the host, mapped from a file if the device is the CPU"),
    ] = "none"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        Field(
            description="of the weights; auto keeps a GGUF file's own on a CPU, and is else bfloat16 where it measures "
            "faster, or float32; int8 is an older spelling of --quantize int8"
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        Field(
            description="rounds the weights of a directory or hub id once and caches them, on a CPU: int4 in blocks of "
            "32 with a scale and a minimum, int8 with a scale for each row"
        ),
    ] = "none"
    workers: Annotated[
        int, Field(ge=1, le=64, description="requests generated at the same time; they share the weights")
    ] = 1
    sparsity: Annotated[
        Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | Literal["auto"],
        Field(description="used when a request names none; 0 is the dense model, auto finds one by a predicted loss"),
    ] = 0.0
    auto_tolerance: Annotated[
        float,
        Field(
            gt=0,
            le=1_000,
            allow_inf_nan=False,
            description="of sparsity auto: percent that the perplexity may rise above the full model's, as predicted",
        ),
    ] = 5.0
    method: Annotated[
        MethodName,
        Field(
            description="of choosing what tokens read, when a request names none; griffin is the paper's, and the "
            "default with --ff-offload"
        ),
    ] = DEFAULT_METHOD
    mode: Annotated[
        ModeName,
        Field(
            description="when a request names none; guarded and lossless have the full model verify answers; lossless "
            "gives sparsity 0's tokens: exactly by the steps that read several tokens in one pass, elsewhere until "
            "rounding decides between two likely ones"
        ),
    ] = "fast"
    draft: Annotated[
        Literal["ngram", "none"],
        Field(
            description="ngram: what followed the latest tokens when they occurred before is checked in one pass, "
            "where that saves time; answers stay what they are. none switches it off for requests that name none"
        ),
    ] = "ngram"
    shadow_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="fraction of pruned answers that is compared with the full model in idle time, for metrics",
        ),
    ] = 0.0
    queue_size: Annotated[int, Field(ge=0, description="requests that may wait; more are refused with 429")] = 32
    prefill_chunk: Annotated[
        int, Field(ge=1, description="prompt tokens per forward pass, and per chunk that is reused")
    ] = 256
    prefix_cache_mb: Annotated[
        int,
        Field(ge=0, description="memory in MiB for beginnings of prompts, which are not read again; 0 keeps none"),
    ] = 512
    prefix_cache_dir: Annotated[
        Path | None,
        Field(
            description="a folder in which beginnings of prompts outlive the server; whoever may read it can tell what "
            "the prompts were; default: they are kept in memory only"
        ),
    ] = None
    prefix_cache_disk_gb: Annotated[
        float, Field(gt=0, le=1e6, allow_inf_nan=False, description="disk space in GB for --prefix-cache-dir")
    ] = 4.0
    prompt_pass_tokens: Annotated[
        Annotated[int, Field(ge=0)] | Literal["auto"],
        Field(
            description="a prompt, or what is left of it after whole chunks, goes through the compiled step if it has "
            "at most so many tokens; auto measures up to where that is faster, a number makes all starts round alike, "
            "0 is never"
        ),
    ] = "auto"
    max_model_len: Annotated[
        int | None, Field(ge=3, description="context limit in tokens; default: the model's own")
    ] = None
    generation_config: Annotated[
        Literal["auto", "none"],
        Field(
            description="auto: where a request names no temperature, top_p and so on, those of the model's "
            "generation_config.json apply; none ignores them"
        ),
    ] = "auto"
    overlong_max_tokens: Annotated[
        Literal["clamp", "refuse"],
        Field(
            description="max_tokens beyond the rest of the context: clamp shortens it to the rest, refuse answers 400"
        ),
    ] = "clamp"
    request_timeout: Annotated[
        float, Field(gt=0, le=86_400, allow_inf_nan=False, description="seconds until a request is given up with 504")
    ] = 600
    keep_alive: Annotated[
        float,
        Field(ge=0.1, le=3_600, allow_inf_nan=False, description="seconds of silence before a stream gets a comment"),
    ] = 15
    max_connections: Annotated[
        int, Field(ge=1, le=1_000_000, description="open at a time; more are refused with 503, or wait")
    ] = 512
    header_timeout: Annotated[
        float,
        Field(gt=0, le=3_600, allow_inf_nan=False, description="seconds that a request's headers may take to arrive"),
    ] = 10
    max_body_bytes: Annotated[int, Field(ge=1024, description="larger request bodies are refused with 413")] = 2 * 2**20
    body_timeout: Annotated[
        float, Field(gt=0, le=3_600, allow_inf_nan=False, description="seconds that a request body may take to arrive")
    ] = 30
    page: Annotated[bool, Field(description="GET / answers with a page to try and compare sparsities")] = True
    api_keys: Annotated[
        SecretStr | None,
        Field(description="comma-separated; requests need one of them, as a bearer token, X-API-Key or api-key"),
    ] = None
    open_operations: Annotated[bool, Field(description="/health, /ready and /metrics need no key")] = True
    cors_origins: Annotated[
        str | None, Field(description="comma-separated origins whose web pages may call the API, or *; default: none")
    ] = None
    drain_timeout: Annotated[
        int, Field(ge=0, le=86_400, description="seconds that running requests get to finish after SIGTERM")
    ] = 30
    cache_dir: Annotated[
        Path | None,
        Field(
            description="for GGUF weights made plain, quantised ones, those that ff-offload maps, and what tune has "
            "found; default: the user's cache (XDG)"
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe message that is logged")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="one line a record, for people or for machines")
    ] = "text"

    @property
    def all_workers(self) -> int:
        """On all devices."""
        return self.workers * len(comma_separated(self.devices or "one"))

    @property
    def memory_limit_bytes(self) -> float | None:
        """For all models together; None where one is loaded at a time."""
        return None if self.memory_limit is None else self.memory_limit * 2**30

    @property
    def each_model(self) -> list["Settings"]:
        """For each of the models, the settings that a server of this model alone would have."""
        return [
            self.model_copy(update={"model": place, "served_model_name": name or self.served_model_name})
            for name, place in map(_named, models_of(self.model))
        ]

    @property
    def served_names(self) -> list[str]:
        """Names in the API; none where the model's own is used."""
        return comma_separated(self.served_model_name or "")

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        # An empty variable counts as absent and does not come here. Keys have a message of their own.
        if isinstance(value, str) and not value.strip() and info.field_name != "api_keys":
            raise ValueError(EMPTY)
        return value

    @model_validator(mode="after")
    def _method_of_streamed_weights(self) -> Self:
        """The default there is the one that can run there. A method that was named is checked with the model."""
        if self.ff_offload != "none" and "method" not in self.model_fields_set:
            self.method = "griffin"
        return self

    @field_validator("served_model_name")
    @classmethod
    def _distinct_names(cls, value: str | None) -> str | None:
        if value is None:
            return None
        names = [name.strip() for name in value.strip().replace("\n", ",").split(",")]
        if not all(names):
            raise ValueError("has an empty name between commas")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"names {twice} twice")
        if any(ALIAS in name for name in names):
            raise ValueError(f"a name cannot contain {ALIAS}, which clients add to ask for a sparsity")
        if not all(map(str.isprintable, names)):
            raise ValueError("a name holds a character that cannot be printed")
        return ",".join(names)

    @model_validator(mode="after")
    def _names_of_models(self) -> Self:
        """
        Raises:
            ValueError: names that could not be told apart, or that no model could have.
        """
        named = [name for name, _ in map(_named, models_of(self.model)) if name]
        if self.served_model_name is not None and (named or len(models_of(self.model)) > 1):
            raise ValueError("served_model_name is for one model without a name of its own; use --model NAME=MODEL")
        for name in named:
            self._distinct_names(name)
        return self

    @field_validator("cors_origins")
    @classmethod
    def _some_origins(cls, value: str | None) -> str | None:
        if value is not None and not comma_separated(value):
            raise ValueError("names no origin")
        return value

    @field_validator("host")
    @classmethod
    def _some_host(cls, value: str) -> str:
        if not comma_separated(value):
            raise ValueError("names no address")
        return value

    @field_validator("devices")
    @classmethod
    def _other_devices(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.data.get("device", "auto") != "auto":
            raise ValueError("device is set too; set one of them")
        copies = comma_separated(value)
        # cuda is the first of them.
        names = ["cuda:0" if name == "cuda" else name for copy in copies for name in map(str.strip, copy.split("+"))]
        if not all(names) or not names:
            raise ValueError("names no device")
        if len(set(names)) < len(names):
            raise ValueError(f"names {next(name for name in names if names.count(name) > 1)} twice")
        return ",".join(copy.replace(" ", "") for copy in copies)

    @field_validator("prefix_cache_dir")
    @classmethod
    def _with_memory(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("prefix_cache_mb") == 0:
            raise ValueError("needs memory too: prefix_cache_mb is 0")
        return value

    @field_validator("api_keys")
    @classmethod
    def _some_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        keys = comma_separated(value.get_secret_value())
        # With an empty list no request, or every request, would be allowed. Neither can be meant.
        if not keys:
            raise ValueError("names no key")
        if not all(map(str.isprintable, keys)):
            raise ValueError("a key holds a character that no header can carry")
        return value


def models_of(value: str) -> list[str]:
    """The models that a value of ``model`` names, between line ends or commas. A path may have a comma in it."""
    lines = filter(None, map(str.strip, value.splitlines()))
    return [model for line in lines for model in ([line] if Path(line).exists() else comma_separated(line))]


def _named(model: str) -> tuple[str | None, str]:
    """A name and a place of NAME=PLACE; no name where there is none. A path may have = in it."""
    name, mark, place = model.partition("=")
    if not mark or "/" in name or not place or Path(model).exists():
        return None, model
    return name.strip(), place.strip()


def comma_separated(value: str) -> list[str]:
    """Parts between commas or line ends, as in a file."""
    return [part for part in map(str.strip, value.replace("\n", ",").split(",")) if part]


def read_settings(arguments: Sequence[str]) -> Settings:
    """From the command line, the environment, and files in ``SECRETS``, in this order.

    Raises:
        SettingsInvalid: naming the flag, or the variable, and what is wrong with it.
    """
    _require_values(arguments)
    arguments = _models_as_one(arguments)
    try:
        # pydantic-settings' own keyword
        return settings_with(_cli_parse_args=list(arguments))
    except ValidationError as error:
        name, message = fault(error)
        raise SettingsInvalid(f"{_source(name, arguments)}: {message}") from None
    except OSError as error:
        raise SettingsInvalid(f"{error.filename} cannot be read: {error.strerror}") from None
    except SettingsError as error:
        raise SettingsInvalid(str(error)) from None


def _models_as_one(arguments: Sequence[str]) -> list[str]:
    """All values of ``--model`` as one, a line each. A flag that stands twice otherwise means its last value."""
    models, others = [], list[str]()
    rest = iter(arguments)
    for argument in rest:
        flag, mark, value = argument.partition("=")
        if flag != "--model":
            others.append(argument)
        elif value := value if mark else next(rest, ""):
            models.append(value)
        else:
            return list(arguments)
    return [*others, "--model", "\n".join(models)] if models else others


def _require_values(arguments: Sequence[str]) -> None:
    """Refuse a flag with an empty value: pydantic-settings takes it as absent, and would use the default.

    Raises:
        SettingsInvalid: naming the flag.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, mark, value = argument.partition("=")
        if not argument.strip() and "=" not in before:
            flag, mark = before, "="
        if flag.startswith("--") and mark and not value.strip():
            raise SettingsInvalid(f"{flag}: {EMPTY}")


def settings_with(**values: Any) -> Settings:
    """Settings from these values, the environment, and files in ``SECRETS``, in this order.

    Raises:
        ValidationError: by field.
        SettingsInvalid: a secret is there that cannot be read.
    """
    if not SECRETS.is_dir():
        return Settings(**values)
    for entry in _secrets():
        # pydantic-settings ignores an entry that is no file, or lies elsewhere. The server would run without keys.
        if not (entry.is_file() and entry.resolve().is_relative_to(SECRETS.resolve())):
            raise SettingsInvalid(f"{entry}: a secret is a file in this folder; was there something to mount?")
        try:
            entry.read_text()
        except UnicodeDecodeError:
            raise SettingsInvalid(f"{entry}: is not text (UTF-8)") from None
    return Settings(**{"_secrets_dir": SECRETS, **values})


def _secrets() -> list[Path]:
    """Entries of the folder that are named like settings, whatever they are."""
    entries = SECRETS.iterdir() if SECRETS.is_dir() else ()
    return [entry for entry in entries if entry.name.lower().startswith(PREFIX.lower())]


def fault(error: ValidationError) -> tuple[str, str]:
    """The first field that is wrong, and what is wrong with it; never a key."""
    first, *others = error.errors(include_url=False)
    name = str(first["loc"][0]) if first["loc"] else "settings"
    got = "" if name == "api_keys" else f" (got {first['input']!r})"
    # A number or a word: pydantic reports each kind by itself.
    words = [
        each["ctx"]["expected"] for each in others if each["loc"][:1] == (name,) and each["type"] == "literal_error"
    ]
    return name, ", or ".join([first["msg"].removeprefix("Value error, "), *words]) + got


def _source(name: str, arguments: Sequence[str]) -> str:
    """Where a setting's value comes from, as its user knows it."""
    flag, variable, file = f"--{name.replace('_', '-')}", f"{PREFIX}{name.upper()}", SECRETS / f"{PREFIX}{name}".lower()
    if any(argument.split("=")[0] == flag for argument in arguments):
        return flag
    if variable in os.environ:
        return variable
    return str(file) if file.exists() else flag


def names_no_key(settings: Settings) -> bool:
    """Whether the variable for keys is there and empty. It counts as absent then, which is easily missed."""
    return f"{PREFIX}API_KEYS" in os.environ and settings.api_keys is None


def unknown_variables() -> list[str]:
    """Environment variables, and secrets by their path, that look like settings and are none."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    variables = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
    return sorted(variables + [str(entry) for entry in _secrets() if entry.name.upper() not in known])
