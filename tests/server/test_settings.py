"""Flags, environment variables and secret files."""

from pathlib import Path

import pytest

from server import settings as module
from server.commandline.reading import read_settings
from server.settings import Settings, SettingsInvalid, names_no_key, unknown_variables


def test_defaults() -> None:
    """The server listens on this machine only, is dense, and has one worker."""
    settings = read_settings([])

    assert (settings.host, settings.port, settings.sparsity, settings.workers) == ("127.0.0.1", 8000, 0.0, 1)


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        ([], "griffin+"),
        (["--ff-offload", "cpu"], "griffin"),
        (["--ff-offload", "none"], "griffin+"),
        (["--ff-offload", "cpu", "--method", "griffin+"], "griffin+"),
        (["--method", "griffin"], "griffin"),
    ],
)
def test_the_default_method(arguments: list[str], method: str) -> None:
    """griffin+ does not run with streamed weights, so griffin is the default there; a named method stays."""
    assert read_settings(arguments).method == method


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable of another setting still counts."""
    monkeypatch.setenv("GRIFFIN_SPARSITY", "0.25")
    monkeypatch.setenv("GRIFFIN_PREFILL_CHUNK", "64")
    settings = read_settings(["--sparsity", "0.5"])

    assert (settings.sparsity, settings.prefill_chunk) == (0.5, 64)


def test_a_secret_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker and Kubernetes mount such files. A variable wins, and an error names the file."""
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    file = tmp_path / "griffin_api_keys"
    file.write_text("first,second\n")
    keys = read_settings([]).api_keys
    monkeypatch.setenv("GRIFFIN_API_KEYS", "third")
    other = read_settings([]).api_keys
    monkeypatch.delenv("GRIFFIN_API_KEYS")
    file.write_text("\n")

    assert keys is not None
    assert keys.get_secret_value() == "first,second"
    assert other is not None
    assert other.get_secret_value() == "third"
    with pytest.raises(SettingsInvalid, match=f"^{file}: names no key"):
        read_settings([])


def test_keys_one_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file may have one key a line. A key that no header can carry is refused and not shown."""
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    file = tmp_path / "griffin_api_keys"
    file.write_text("first\nsecond\r\n")
    keys = read_settings([]).api_keys
    file.write_text("key\x07board\n")

    assert keys is not None
    assert module.comma_separated(keys.get_secret_value()) == ["first", "second"]
    with pytest.raises(SettingsInvalid, match=f"^{file}: a key contains a character") as refusal:
        read_settings([])
    assert "board" not in str(refusal.value)


def test_a_misspelt_secret_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a warning the server would run without keys."""
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    for name in ("griffin_apikeys", "griffin_api_keys", "hf_token"):
        (tmp_path / name).write_text("key")

    assert unknown_variables() == [str(tmp_path / "griffin_apikeys")]


@pytest.mark.parametrize("kind", ["folder", "link elsewhere", "nothing"])
def test_a_secret_that_is_not_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """Docker mounts a folder for a missing file; the server must not start without keys then."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setattr(module, "SECRETS", secrets)
    entry = secrets / "griffin_api_keys"
    if kind == "folder":
        entry.mkdir()
    else:
        entry.symlink_to(tmp_path / "key")
        if kind == "link elsewhere":
            (tmp_path / "key").write_text("key")

    with pytest.raises(SettingsInvalid, match="griffin_api_keys: a secret is a file"):
        read_settings([])


def test_a_secret_may_be_a_link_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kubernetes mounts secrets in this way."""
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data/griffin_api_keys").write_text("key")
    (tmp_path / "griffin_api_keys").symlink_to("..data/griffin_api_keys")
    keys = read_settings([]).api_keys

    assert keys is not None
    assert keys.get_secret_value() == "key"


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file sets variables to "" if the user has not set them."""
    monkeypatch.setenv("GRIFFIN_CACHE_DIR", "")
    monkeypatch.setenv("GRIFFIN_WORKERS", "")

    assert (read_settings([]).cache_dir, read_settings([]).workers) == (None, 1)


def test_the_limit_of_passes() -> None:
    """The default is auto, which means measured; a number is possible."""
    found = [read_settings(each).prompt_pass_tokens for each in ([], ["--prompt-pass-tokens", "48"])]

    assert found == ["auto", 48]


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--sparsity", "1"], {}, "--sparsity: must be a number from 0 to below 1, such as 0.5, or auto"),
        (["--prompt-pass-tokens", "x"], {}, "--prompt-pass-tokens: must be a whole number of 0 or more, or auto"),
        (["--sparsity", "nan"], {}, "--sparsity: must be a number"),
        (["--prompt-pass-tokens=-1"], {}, "--prompt-pass-tokens: must be a whole number of 0 or more"),
        ([], {"GRIFFIN_PROMPT_PASS_TOKENS": "some"}, "GRIFFIN_PROMPT_PASS_TOKENS: must be a whole number"),
        (["--api-keys", ","], {}, "--api-keys: names no key"),
        ([], {"GRIFFIN_API_KEYS": " , "}, "GRIFFIN_API_KEYS: names no key"),
        (["--drain-timeout", "9" * 400], {}, "--drain-timeout"),
        (["--port", "http"], {}, "--port: must be a whole number from 0 to 65535"),
        (["--dtype=int4"], {}, "dtype"),
        (["--devices", "cuda:0", "--device", "cuda:1"], {}, "--devices: device is set too; set one of them"),
        ([], {"GRIFFIN_DEVICES": "cuda:0,cuda:0"}, "GRIFFIN_DEVICES: names cuda:0 twice"),
        (["--devices", "cuda,cuda:0"], {}, "--devices: names cuda:0 twice"),
        (["--devices", "cuda:0+"], {}, "--devices: names no device"),
        (["--devices", ","], {}, "--devices: names no device"),
        ([], {"GRIFFIN_FF_OFFLOAD": "disk"}, "GRIFFIN_FF_OFFLOAD: must be none or cpu"),
        (["--served-model-name", "a,b,a"], {}, "--served-model-name: names a twice"),
        (["--served-model-name", " a , a"], {}, "--served-model-name: names a twice"),
        (["--served-model-name", "a,,b"], {}, "--served-model-name: has an empty name"),
        (["--served-model-name", "a,"], {}, "--served-model-name: has an empty name"),
        (["--served-model-name", ","], {}, "--served-model-name: has an empty name"),
        ([], {"GRIFFIN_SERVED_MODEL_NAME": "a, "}, "GRIFFIN_SERVED_MODEL_NAME: has an empty name"),
        (["--served-model-name", "a,b@sparsity=0.5"], {}, "--served-model-name: a name cannot contain @sparsity="),
        (["--served-model-name", "a\x07"], {}, "--served-model-name: a name contains a character"),
        (["--cors-origins", ","], {}, "--cors-origins: names no origin"),
        ([], {"GRIFFIN_MODEL": "  "}, "GRIFFIN_MODEL: is empty"),
        ([], {"GRIFFIN_HOST": "\t"}, "GRIFFIN_HOST: is empty"),
        ([], {"GRIFFIN_CACHE_DIR": " "}, "GRIFFIN_CACHE_DIR: is empty"),
        ([], {"GRIFFIN_WORKERS": "0"}, "GRIFFIN_WORKERS: must be a whole number from 1 to 64"),
    ],
)
def test_wrong_values_are_named(
    arguments: list[str], environment: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the flag or the variable, as the user wrote it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=text):
        read_settings(arguments)


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_a_flag_without_a_value_is_refused(name: str, empty: str) -> None:
    """An unset shell variable gives such a flag. The default would apply silently, perhaps without keys."""
    flag = f"--{name.replace('_', '-')}"
    for arguments in ([flag, empty], [f"{flag}={empty}"], ["--port", "0", flag, empty, "--workers", "1"]):
        with pytest.raises(SettingsInvalid, match=f"^{flag}: is empty"):
            read_settings(arguments)


def test_names_are_read() -> None:
    """They are separated by commas or lines; spaces around them do not matter, their case does."""
    named = [read_settings(["--served-model-name", value]).served_names for value in ("a", " a , b c,A", "a\nb\n")]

    assert named == [["a"], ["a", "b c", "A"], ["a", "b"]]
    assert read_settings([]).served_names == []


def test_unknown_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server can warn of a mistyped variable."""
    monkeypatch.setenv("GRIFFIN_SPARISTY", "0.5")

    assert unknown_variables() == ["GRIFFIN_SPARISTY"]


@pytest.mark.parametrize(
    ("arguments", "environment", "missing"),
    [([], {}, False), ([], {"GRIFFIN_API_KEYS": ""}, True), (["--api-keys", "key"], {}, False),
     (["--api-keys", "key"], {"GRIFFIN_API_KEYS": ""}, False)],
)  # fmt: skip
def test_an_empty_list_of_keys_is_noticed(
    arguments: list[str], environment: dict[str, str], missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty list of keys opens the server to everyone, so the server warns."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert names_no_key(read_settings(arguments)) == missing


def test_devices_are_read() -> None:
    """A copy has one device, or several joined by +; spaces do not matter."""
    assert read_settings(["--devices", "cuda:0, cuda:1 + cuda:2"]).devices == "cuda:0,cuda:1+cuda:2"
    assert (read_settings([]).devices, read_settings([]).ff_offload) == (None, "none")


def test_keys_are_not_shown() -> None:
    """Printed settings hide them."""
    assert "secret" not in repr(read_settings(["--api-keys", "secret"]))
