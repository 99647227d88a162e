"""Reads the settings from flags, the environment and files; what is wrong is told of the one that the user wrote."""

from collections.abc import Collection, Sequence

from pydantic import ValidationError
from pydantic_settings import SettingsError

from server.commandline.parser import flag_of, parse
from server.commandline.words import whole
from server.settings import Settings, SettingsInvalid, other_source, settings_with


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read the command line, the environment, and files in ``SECRETS``; the earlier source wins.

    Raises:
        SettingsInvalid: names the flag or the variable, and says what is wrong.
    """
    flags = parse(arguments)
    try:
        return settings_with(**flags)
    except ValidationError as error:
        name, message = fault(error)
        raise SettingsInvalid(f"{_source(name, flags)}: {message}") from None
    except OSError as error:
        raise SettingsInvalid(f"{error.filename} cannot be read: {error.strerror}") from None
    except SettingsError as error:
        raise SettingsInvalid(str(error)) from None


def fault(error: ValidationError) -> tuple[str, str]:
    """The first wrong field and what is wrong with it. The text never contains an API key."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    got = "" if name == "api_keys" else f" (got {first['input']!r})"
    if first["type"] == "value_error" or name not in Settings.model_fields:
        return name, first["msg"].removeprefix("Value error, ") + got
    return name, f"must be {whole(name)}{got}"


def _source(name: str, flags: Collection[str]) -> str:
    """The flag, variable or file that gave a setting its value."""
    return flag_of(name) if name in flags else other_source(name) or flag_of(name)
