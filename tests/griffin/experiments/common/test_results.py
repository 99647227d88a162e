"""Tables in their two forms, and files that are complete or absent."""

from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.results import Table, write_json, write_whole


def test_a_table_in_both_forms() -> None:
    """Words are on the left, figures on the right. A model's name is never markup."""
    table = Table(["", "a"], [["one", "1"], ["[x](y) | <b>", "22"]], "Two *rows*")

    assert table.text() == "Two *rows*\n               a\none            1\n[x](y) | <b>  22"
    assert table.markdown() == (
        "Two \\*rows\\*\n\n|  | a |\n| --- | ---: |\n| one | 1 |\n| \\[x\\](y) \\| \\<b\\> | 22 |"
    )


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new file cannot be written, the old one stays and no other file is left."""
    path = tmp_path / "deep" / "found.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644

    def fails(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(GriffinError, match=r"cannot write '.*found.json': No space left on device"):
        write_whole(path, "other")
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["found.json"]
