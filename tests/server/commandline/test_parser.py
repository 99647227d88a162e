"""Flags that this server does not have, and the text of --help."""

import re
import subprocess
import sys

import pytest

from server.commandline.elsewhere import FLAGS
from server.commandline.parser import flag_of, parse
from server.commandline.reading import read_settings
from server.commandline.words import short, whole
from server.settings import Settings, SettingsInvalid

OURS = [flag_of(name) for name in Settings.model_fields]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ctx-size", "4096"], "--ctx-size is unknown; it is --max-model-len here"),
        (["--ctx-size=4096"], "--ctx-size is unknown; it is --max-model-len here"),
        (["--port", "0", "-m", "FILE"], "-m is unknown; it is --model here"),
        (["-hf", "OWNER/NAME"], "-hf is unknown; it is --model OWNER/NAME:QUANTISATION here"),
        (["-t", "4", "--help"], "-t is unknown; set the variable OMP_NUM_THREADS; without it all cores are used"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size is unknown; name devices with --devices"),
        (["--sparisty", "0.5"], "--sparisty is unknown; did you mean --sparsity?"),
        (["--workrs=2"], "--workrs is unknown; did you mean --workers?"),
        (["--zzz"], "--zzz is unknown"),
        (["-z", "1"], "-z is unknown"),
        (["model.gguf"], "'model.gguf' follows no flag; a model is named by --model"),
        (["--port"], "--port: expected one argument"),
        (["--api-keys", "--page", "false"], "--api-keys: expected one argument"),
    ],
)
def test_an_unknown_flag(arguments: list[str], text: str) -> None:
    """One line names the flag that the user probably means, also for flags of other servers."""
    with pytest.raises(SettingsInvalid, match=f"^{re.escape(text)}$"):
        parse(arguments)


def test_other_servers_flags() -> None:
    """They overlap with no flag of ours, and their hints name flags of ours."""
    told = {flag for instead in FLAGS.values() for flag in re.findall(r"(?<!\S)--[a-z-]+", instead)}

    assert not set(FLAGS) & {*OURS, "-h", "--help"}
    assert told - {"--revision"} <= set(OURS)


def test_a_value_may_begin_like_a_number() -> None:
    """The error is about the value, not about an unknown flag -1."""
    with pytest.raises(SettingsInvalid, match=r"^--port: must be a whole number from 0 to 65535 \(got '-1'\)"):
        read_settings(["--port", "-1"])


def test_the_program_ends_with_one_line() -> None:
    """The exit code is that of wrong flags."""
    ended = subprocess.run([sys.executable, "-m", "server", "--ctx-size", "4096"], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == ("griffin: --ctx-size is unknown; it is --max-model-len here; see python -m server --help\n")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting has a sentence, and no Python names appear."""
    with pytest.raises(SystemExit) as exit:
        parse(["--help"])
    shown = capsys.readouterr().out

    assert exit.value.code == 0
    assert "GRIFFIN_PREFILL_CHUNK" in shown
    assert not re.findall(r"None\b|SecretStr|Path\b|\bstr\b|\bint\b|\bbool\b|\bfloat\b|False|True", shown)
    for name, field in Settings.model_fields.items():
        assert f"{flag_of(name)} {short(name)}" in shown
        assert field.description


@pytest.mark.parametrize(
    ("name", "one_word", "sentence"),
    [
        ("sparsity", "number|auto", "a number from 0 to below 1, such as 0.5, or auto"),
        ("prompt_pass_tokens", "number|auto", "a whole number of 0 or more, or auto"),
        ("port", "number", "a whole number from 0 to 65535"),
        ("memory_limit", "number", "a number above 0"),
        ("max_connections", "number", "a whole number from 1 to 1000000"),
        ("keep_alive", "number", "a number from 0.1 to 3600"),
        ("auto_tolerance", "number", "a number above 0, up to 1000"),
        ("page", "true|false", "true or false"),
        ("cache_dir", "folder", "a folder"),
        ("api_keys", "text", "a text"),
        ("quantize", "none|int8|int4", "none, int8 or int4"),
    ],
)
def test_values_in_words(name: str, one_word: str, sentence: str) -> None:
    """Help has the short words, errors the long ones."""
    assert (short(name), whole(name)) == (one_word, sentence)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sparsity", "50%"], "--sparsity: must be a number from 0 to below 1, such as 0.5, or auto (got '50%')"),
        (["--page", "perhaps"], "--page: must be true or false (got 'perhaps')"),
        (["--workers", "1.5"], "--workers: must be a whole number from 1 to 64 (got '1.5')"),
        (["--quantize", "q4"], "--quantize: must be none, int8 or int4 (got 'q4')"),
    ],
)
def test_a_wrong_value(arguments: list[str], text: str) -> None:
    """The error says what is allowed and what was given."""
    with pytest.raises(SettingsInvalid, match=f"^{re.escape(text)}$"):
        read_settings(arguments)
