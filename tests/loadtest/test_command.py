"""The command as a user runs it, against a real server process."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.loadtest.peer import Peer, served
from tests.server.scripted import wait_until


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "loadtest", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def loadtest(*arguments: str) -> tuple[list[str], dict[str, Any]]:
    """The lines of the printed table, and the JSON."""
    code, out, err = finished(start(*arguments))
    assert code == 0, err
    *table, last = out.splitlines()
    return table, json.loads(last)


def test_open_loop(url: str, tmp_path: Path) -> None:
    """Both sparsities answer the same number of equally long prompts, and no prompt comes from the prefix cache."""
    table, found = loadtest(
        "--url", url, "--rate", "20", "--requests", "6", "--prompt-tokens", "50", "--max-tokens", "5",
        "--json", str(tmp_path / "a.json"), "--objective", "e2e=60000", "tpot=0.0001",
    )  # fmt: skip
    rows = found["by_sparsity"]

    assert list(rows) == ["0", "0.5"]
    for name, row in rows.items():
        assert (row["requests"], row["answered"], row["errors"]) == (6, 6, {})
        assert row["completion_tokens"]["min"] == row["completion_tokens"]["max"] == 5
        assert row["prompt_tokens"]["min"] == row["prompt_tokens"]["max"] == 50
        assert row["cached_tokens"]["max"] == 0
        assert row["tokens_counted"] == "usage"
        assert all(row[key]["p50"] <= row[key]["p95"] <= row[key]["p99"] for key in ("ttft_ms", "itl_ms", "e2e_ms"))
        assert row["griffin"]["sparsity"] == float(name)
        assert row["server_reported"]["time_to_first_token_ms"]["difference"] > 0
        assert row["goodput"]["share"] == 0
    assert list(found["compared"]) == ["0.5"]
    assert found["client"]["schedule_lag_ms"]["count"] == 12
    assert [line.split()[0] for line in table[4:6]] == ["0", "0.5"]
    assert json.loads((tmp_path / "a.json").read_text()) == found


def test_closed_loop_not_streamed_in_chat(url: str) -> None:
    """For whole answers there are only end-to-end times and the server's own figures."""
    table, found = loadtest(
        "--url", url, "--concurrency", "2", "--requests", "4", "--no-stream", "--endpoint", "chat", "--max-tokens", "4",
        "--prompt-tokens", "70", "--sparsities", "0.5",
    )  # fmt: skip
    row = found["by_sparsity"]["0.5"]

    assert row["answered"] == 4
    assert row["ttft_ms"] is row["itl_ms"] is None
    assert row["prompt_tokens"]["min"] == row["prompt_tokens"]["max"] == 70
    assert row["server_reported"]["mean_itl_ms"]["server"] > 0
    assert found["client"]["schedule_lag_ms"] is None
    assert "closed loop, 2 at a time" in table[0]


def test_prompts_from_a_file_may_share_a_beginning(url: str, tmp_path: Path) -> None:
    """The prefix cache finds shared prompts; with a number of its own each is read whole."""
    (tmp_path / "a.txt").write_text("snow " * 40 + "\n")
    shape = ["--url", url, "--concurrency", "1", "--requests", "2", "--max-tokens", "2"]
    _, own = loadtest(*shape, "--prompts", str(tmp_path / "a.txt"))
    _, shared = loadtest(*shape, "--prompts", str(tmp_path / "a.txt"), "--shared-prefix")

    assert own["by_sparsity"]["0"]["cached_tokens"]["max"] == 0
    assert shared["by_sparsity"]["0"]["cached_tokens"]["min"] > 0
    assert (own["nonce"] is None, shared["nonce"]) == (False, None)


def test_no_griffin(url: str) -> None:
    """Our own server then uses its default, as any other server does."""
    _, found = loadtest("--url", url, "--no-griffin", "--requests", "2", "--rate", "50", "--max-tokens", "2")

    assert list(found["by_sparsity"]) == ["none"]
    assert found["by_sparsity"]["none"]["griffin"]["reasons"] == {"server_default": 2}


def test_a_refused_request_is_one_line(url: str) -> None:
    """It comes before any load, with the server's own message."""
    code, out, err = finished(start("--url", url, "--prompt-tokens", "4000"))

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"loadtest: {url}/v1/completions refuses a request with sparsity 0: HTTP 400 ")


def test_no_server() -> None:
    """One line, exit code 1, and no table."""
    code, out, err = finished(start("--url", "http://127.0.0.1:9"))

    assert (code, out) == (1, "")
    assert re.fullmatch(r"loadtest: no server answers at http://127.0.0.1:9 \(.*\); start it, or .* --url\n", err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(number: signal.Signals) -> None:
    """Answered requests are reported, others count as unfinished, and the exit code is the signal's."""
    peer = Peer(gate=threading.Event(), usage=True)
    with served(peer) as url:
        process = start("--url", url, "--no-griffin", "--warmup", "0", "--rate", "1000", "--requests", "5")
        try:
            wait_until(lambda: len(peer.bodies) == 5, 60)
            process.send_signal(number)
            code, out, err = finished(process)
        finally:
            process.kill()
            peer.gate.set()
    found = json.loads(out.splitlines()[-1])

    assert code == 128 + number
    assert "Traceback" not in err
    assert found["stopped_by"] == number.name
    assert found["totals"]["unfinished"] == 5


def test_stopped_before_anything_is_measured() -> None:
    """One line and no table."""
    peer = Peer(gate=threading.Event())
    with served(peer) as url:
        process = start("--url", url, "--no-griffin")
        try:
            wait_until(lambda: peer.bodies, 60)
            process.send_signal(signal.SIGINT)
            code, out, err = finished(process)
        finally:
            process.kill()
            peer.gate.set()

    assert (code, out) == (130, "")
    assert err == "loadtest: stopped; nothing more is reported\n"


def test_nothing_answered() -> None:
    """The table is printed, and the exit code is 1."""
    with served(Peer(statuses=dict.fromkeys(range(2), 503))) as url:
        code, out, _ = finished(start("--url", url, "--no-griffin", "--warmup", "0", "--requests", "2", "--rate", "50"))

    assert code == 1
    assert json.loads(out.splitlines()[-1])["totals"]["errors"] == {"HTTP 503 queue_full": 2}


def test_a_reader_who_leaves(url: str) -> None:
    """If the reader closes the pipe, there is no traceback."""
    process = start("--url", url, "--requests", "1", "--rate", "50", "--max-tokens", "2")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(60)
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()

    assert "Traceback" not in err
    assert process.returncode == 0
