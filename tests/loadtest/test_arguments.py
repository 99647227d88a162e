"""Right and wrong flags."""

from pathlib import Path

import pytest

from loadtest.arguments import parse


def test_defaults() -> None:
    """An open loop with sparsities 0 and 0.5 and ten requests each."""
    options = parse([])

    assert (options.rate, options.concurrency, options.requests, options.duration_s) == (0.5, None, 10, None)
    assert options.sparsities == (0.0, 0.5)
    assert parse(["--duration", "5"]).requests is None
    assert parse(["--concurrency", "2"]).rate is None
    assert parse(["--no-griffin"]).sparsities == (None,)


@pytest.mark.parametrize("given", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"])
def test_addresses_as_people_copy_them(given: str) -> None:
    """The base address is the same with or without a slash or /v1."""
    assert parse(["--url", given]).url == "http://host:1"


def test_the_key_is_not_recorded(tmp_path: Path) -> None:
    """The recorded command hides it, in both spellings of the flag."""
    (tmp_path / "key").write_text("secret\n")

    assert parse(["--api-key-file", str(tmp_path / "key")]).api_key == "secret"
    assert parse(["--api-key", "secret", "--requests", "1"]).command == ("--api-key", "***", "--requests", "1")
    assert parse(["--api-key=secret"]).command == ("--api-key=***",)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--rate 0", "--rate: '0' is not a number above 0"),
        ("--rate inf", "--rate"),
        ("--rate 1 --concurrency 1", "not allowed with"),
        ("--concurrency 0", "--concurrency"),
        ("--requests -1", "--requests"),
        ("--requests 1.5", "--requests: '1.5' is not a whole number"),
        ("--duration nan", "--duration"),
        ("--url http://127.0.0.1:99999", "--url: 'http://127.0.0.1:99999' is not an address such as"),
        ("--url http://[::1", "--url: 'http://[::1' is not an address such as"),
        ("--sparsities 1", "--sparsities: '1' is not at least 0 and below 1"),
        ("--sparsities 0.5 .5", "--sparsities: 0.5 is named twice"),
        ("--sparsities 0 --no-griffin", "not allowed with"),
        ("--objective ttft", "--objective"),
        ("--objective slow=1", "--objective: 'slow=1' is not NAME=MILLISECONDS with one of ttft, itl, tpot, e2e"),
        ("--objective ttft=0", "--objective: '0' is not a number above 0"),
        ("--objective ttft=1 ttft=2", "--objective: the same limit is given twice"),
        ("--objective ttft=1 --no-stream", "--objective: ttft needs a stream"),
        ("--body [1]", "--body: '[1]' is not an object"),
        ("--body {", "--body: '{' is not JSON"),
        ('--body {"stream":true}', "--body: 'stream' has a flag of its own"),
        ('--body {"n":2}', "--body: 'n': one answer is measured for each request"),
        ('--body {"seed":NaN}', "--body"),
        ("--api-key schl\u00fcssel", "--api-key: the key is not one line of ASCII"),
        ("--url host:8000", "--url: 'host:8000' is not an address"),
        ("--url http://me:secret@host", "--url: the address holds a name or password; use --api-key-file"),
        ("--prompts missing.txt", "--prompts: cannot read 'missing.txt'"),
        ("--html missing/a.html", "--html: there is no directory 'missing'"),
        ("--json . ", "--json: '.' is a directory"),
        ("--json a --html a", "--html: the same file as --json"),
        ("--api-key-file missing", "--api-key-file: cannot read 'missing'"),
        ("--sparsity 0.5", "unrecognized arguments: --sparsity"),
    ],
)
def test_wrong_flags(arguments: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2, and the last line names the flag and what it needs."""
    with pytest.raises(SystemExit) as left:
        parse(arguments.split())

    assert left.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_conversation_needs_the_chat_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes before anything is sent."""
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}]}')
    with pytest.raises(SystemExit):
        parse(["--prompts", str(tmp_path / "a.jsonl")])

    assert "add --endpoint chat" in capsys.readouterr().err


def test_a_page_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes before the load and says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        parse(["--html", "a.html"])

    assert "pip install matplotlib" in capsys.readouterr().err
