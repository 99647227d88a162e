"""Settings: every flag and environment variable, its default and its meaning."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from griffin.request import DEFAULT_METHOD, MethodName, ModeName

PREFIX = "GRIFFIN_"
# Where Docker and Kubernetes mount secrets: a file griffin_api_keys there replaces the variable.
SECRETS = Path("/run/secrets")
# NAME@sparsity=0.5 is the model at that sparsity, for clients that cannot add a field.
ALIAS = "@sparsity="
EMPTY = "is empty; give it a value, or leave it out"


class SettingsInvalid(Exception):
    """A flag or environment variable is wrong. The text is one line for the user."""


class Settings(BaseSettings):
    """Every setting. prefill_chunk is the flag --prefill-chunk and the environment variable GRIFFIN_PREFILL_CHUNK."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
    )

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="the model: a hub id, OWNER/NAME:QUANTISATION, a model directory, a .gguf file, or the "
            "embedded default. NAME=MODEL gives it a name. The flag may be repeated (in the variable: "
            "separate models by commas). The first model is loaded at the start, each other one when a "
            "request asks for it",
        ),
    ] = "SmolLM2-135M-Instruct"
    memory_limit: Annotated[
        float | None,
        Field(
            gt=0,
            description="GiB of memory that all loaded models may take together. Default: one model is loaded at a "
            "time",
        ),
    ] = None
    served_model_name: Annotated[
        str | None,
        Field(
            description="names of the model in the API, comma-separated; metrics show the first. Default: the model's"
            " own name"
        ),
    ] = None
    host: Annotated[
        str, Field(description="addresses to listen on, comma-separated; :: listens on all IPv6 and IPv4 addresses")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    device: Annotated[str, Field(description="auto (CUDA when there is one), cpu, cuda or cuda:N")] = "auto"
    devices: Annotated[
        str | None,
        Field(
            description="replaces --device: devices, comma-separated. Each gets a copy of the model and its own "
            "workers; cuda:0+cuda:1 splits one copy over two devices"
        ),
    ] = None
    ff_offload: Annotated[
        Literal["none", "cpu"],
        Field(
            description="cpu: keep feed-forward weights in the host's memory. If --device is the CPU, they are mapped"
            " from a file instead"
        ),
    ] = "none"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        Field(
            description="type of the weights. auto: on a CPU, a GGUF file keeps its own types; otherwise bfloat16 "
            "where it measures faster, else float32. int8 is an older spelling of --quantize int8"
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        Field(
            description="round the weights of a directory or hub id once, and cache the result (CPU only). int4: "
            "blocks of 32 weights with a scale and a minimum; int8: one scale a row"
        ),
    ] = "none"
    workers: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="requests that are generated at the same time on each device; they share the weights",
        ),
    ] = 1
    sparsity: Annotated[
        Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | Literal["auto"],
        Field(
            examples=[0.5],
            description="sparsity of requests that name none. 0 is the dense model; auto chooses one from a predicted"
            " loss",
        ),
    ] = 0.0
    auto_tolerance: Annotated[
        float,
        Field(
            gt=0,
            le=1_000,
            allow_inf_nan=False,
            description="for sparsity auto: how many percent above the full model's perplexity the predicted "
            "perplexity may be",
        ),
    ] = 5.0
    method: Annotated[
        MethodName,
        Field(
            description="method of requests that name none: how neurons are chosen. griffin is the paper's method, "
            "and the default with --ff-offload"
        ),
    ] = DEFAULT_METHOD
    mode: Annotated[
        ModeName,
        Field(
            description="mode of requests that name none. fast: the pruned model answers alone. guarded and lossless:"
            " the full model verifies the answer. lossless gives the tokens of sparsity 0: exactly where "
            "the compiled step reads several tokens in one pass, otherwise until rounding decides between"
            " two nearly equal tokens"
        ),
    ] = "fast"
    draft: Annotated[
        Literal["ngram", "none"],
        Field(
            description="drafts of requests that name none. ngram: if the latest tokens occurred earlier, the tokens "
            "that followed them are checked in one pass where that saves time. Answers do not change. "
            "none: no drafts"
        ),
    ] = "ngram"
    shadow_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="fraction of pruned answers that are compared with the full model in idle time, for metrics",
        ),
    ] = 0.0
    queue_size: Annotated[int, Field(ge=0, description="requests that may wait; more are refused with 429")] = 32
    prefill_chunk: Annotated[
        int, Field(ge=1, description="prompt tokens in one forward pass; reused prompt beginnings are multiples of it")
    ] = 256
    prefix_cache_mb: Annotated[
        int,
        Field(
            ge=0,
            description="memory in MiB for the beginnings of prompts, so that they are not computed again; 0 keeps "
            "none",
        ),
    ] = 512
    prefix_cache_dir: Annotated[
        Path | None,
        Field(
            description="folder that keeps the beginnings of prompts after the server stops. Anyone who can read it "
            "can find out what the prompts were. Default: they are kept in memory only"
        ),
    ] = None
    prefix_cache_disk_gb: Annotated[
        float, Field(gt=0, le=1e6, allow_inf_nan=False, description="disk space in GB for --prefix-cache-dir")
    ] = 4.0
    prompt_pass_tokens: Annotated[
        Annotated[int, Field(ge=0)] | Literal["auto"],
        Field(
            description="the compiled step reads a prompt, or the rest after whole chunks, if it has at most this "
            "many tokens. auto: measure at the start up to which length that is faster; a number gives "
            "the same rounding at every start; 0: never"
        ),
    ] = "auto"
    max_model_len: Annotated[
        int | None, Field(ge=3, description="context limit in tokens. Default: the model's own limit")
    ] = None
    generation_config: Annotated[
        Literal["auto", "none"],
        Field(
            description="auto: fields that a request leaves out, such as temperature and top_p, come from the model's"
            " generation_config.json; none: ignore that file"
        ),
    ] = "auto"
    overlong_max_tokens: Annotated[
        Literal["clamp", "refuse"],
        Field(
            description="when max_tokens is more than the rest of the context. clamp: shorten it to the rest; refuse:"
            " answer 400"
        ),
    ] = "clamp"
    request_timeout: Annotated[
        float,
        Field(
            gt=0, le=86_400, allow_inf_nan=False, description="seconds that a request may take; then it ends with 504"
        ),
    ] = 600
    keep_alive: Annotated[
        float,
        Field(
            ge=0.1,
            le=3_600,
            allow_inf_nan=False,
            description="seconds without data after which a stream gets a comment line",
        ),
    ] = 15
    max_connections: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="connections open at the same time; further ones are refused with 503, or wait",
        ),
    ] = 512
    header_timeout: Annotated[
        float,
        Field(gt=0, le=3_600, allow_inf_nan=False, description="seconds within which a request's headers must arrive"),
    ] = 10
    max_body_bytes: Annotated[
        int, Field(ge=1024, description="bytes that a request body may have; larger ones are refused with 413")
    ] = 2 * 2**20
    body_timeout: Annotated[
        float, Field(gt=0, le=3_600, allow_inf_nan=False, description="seconds within which a request body must arrive")
    ] = 30
    page: Annotated[bool, Field(description="GET / answers with a page to try and compare sparsities")] = True
    api_keys: Annotated[
        SecretStr | None,
        Field(
            description="keys, comma-separated. A request must send one of them, as a bearer token, X-API-Key or "
            "api-key. Default: no key is needed"
        ),
    ] = None
    open_operations: Annotated[bool, Field(description="/health, /ready and /metrics need no key")] = True
    cors_origins: Annotated[
        str | None,
        Field(description="origins, comma-separated, whose web pages may call the API; * allows all. Default: none"),
    ] = None
    drain_timeout: Annotated[
        int, Field(ge=0, le=86_400, description="seconds that running requests have to finish after SIGTERM")
    ] = 30
    cache_dir: Annotated[
        Path | None,
        Field(
            description="folder for converted GGUF weights, quantised weights, weights that --ff-offload maps, and "
            "results of tune. Default: the user's cache (XDG)"
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe level that is logged")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="one line a record: text for people, json for machines")
    ] = "text"

    @property
    def all_workers(self) -> int:
        """Workers of all devices together."""
        return self.workers * len(comma_separated(self.devices or "one"))

    @property
    def memory_limit_bytes(self) -> float | None:
        """Memory of all models together, in bytes; None if one model is loaded at a time."""
        return None if self.memory_limit is None else self.memory_limit * 2**30

    @property
    def each_model(self) -> list["Settings"]:
        """For each model, the settings of a server that serves only this model."""
        return [
            self.model_copy(update={"model": place, "served_model_name": name or self.served_model_name})
            for name, place in map(_named, models_of(self.model))
        ]

    @property
    def served_names(self) -> list[str]:
        """Names in the API; empty if the model's own name is used."""
        return comma_separated(self.served_model_name or "")

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        # An empty variable counts as absent and is not validated. Keys have their own message.
        if isinstance(value, str) and not value.strip() and info.field_name != "api_keys":
            raise ValueError(EMPTY)
        return value

    @model_validator(mode="after")
    def _method_of_streamed_weights(self) -> Self:
        """With --ff-offload only griffin can run, so it is the default. A named method is checked with the model."""
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
            raise ValueError("a name contains a character that cannot be printed")
        return ",".join(names)

    @model_validator(mode="after")
    def _names_of_models(self) -> Self:
        """
        Raises:
            ValueError: names are equal, or a name is not allowed.
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
        # "cuda" means the first CUDA device.
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
            raise ValueError("needs memory too, but prefix_cache_mb is 0")
        return value

    @field_validator("api_keys")
    @classmethod
    def _some_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        keys = comma_separated(value.get_secret_value())
        # An empty list would allow no request or every request; the user means neither.
        if not keys:
            raise ValueError("names no key")
        if not all(map(str.isprintable, keys)):
            raise ValueError("a key contains a character that no header can carry")
        return value


def models_of(value: str) -> list[str]:
    """The models in a value of ``model``, split at line ends and commas. An existing path may contain a comma."""
    lines = filter(None, map(str.strip, value.splitlines()))
    return [model for line in lines for model in ([line] if Path(line).exists() else comma_separated(line))]


def _named(model: str) -> tuple[str | None, str]:
    """The name and the place in NAME=PLACE; the name may be missing. An existing path may contain =."""
    name, mark, place = model.partition("=")
    if not mark or "/" in name or not place or Path(model).exists():
        return None, model
    return name.strip(), place.strip()


def comma_separated(value: str) -> list[str]:
    """Parts between commas or line ends; files have a part a line."""
    return [part for part in map(str.strip, value.replace("\n", ",").split(",")) if part]


def settings_with(**values: Any) -> Settings:
    """Settings from these values, the environment, and files in ``SECRETS``; the earlier source wins.

    Raises:
        ValidationError: a setting is wrong; names it.
        SettingsInvalid: a secret cannot be read.
    """
    if not SECRETS.is_dir():
        return Settings(**values)
    for entry in _secrets():
        # pydantic-settings ignores folders and links to elsewhere. The server would then run without keys.
        if not (entry.is_file() and entry.resolve().is_relative_to(SECRETS.resolve())):
            raise SettingsInvalid(f"{entry}: a secret is a file in this folder, but this is not; check what is mounted")
        try:
            entry.read_text()
        except UnicodeDecodeError:
            raise SettingsInvalid(f"{entry}: is not text (UTF-8)") from None
    return Settings(**{"_secrets_dir": SECRETS, **values})


def _secrets() -> list[Path]:
    """Entries of the secrets folder that are named like settings: files, folders or links."""
    entries = SECRETS.iterdir() if SECRETS.is_dir() else ()
    return [entry for entry in entries if entry.name.lower().startswith(PREFIX.lower())]


def other_source(name: str) -> str | None:
    """The variable or file, instead of a flag, that gives a setting its value; None if there is none."""
    variable, file = f"{PREFIX}{name.upper()}", SECRETS / f"{PREFIX}{name}".lower()
    if variable in os.environ:
        return variable
    return str(file) if file.exists() else None


def names_no_key(settings: Settings) -> bool:
    """Whether the variable for keys is set but empty. It then counts as absent, which is easily missed."""
    return f"{PREFIX}API_KEYS" in os.environ and settings.api_keys is None


def unknown_variables() -> list[str]:
    """Environment variables, and paths of secrets, that look like settings but are not."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    variables = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
    return sorted(variables + [str(entry) for entry in _secrets() if entry.name.upper() not in known])
