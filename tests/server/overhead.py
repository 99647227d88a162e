"""The cost of the server alone: an engine that needs no time, the real tokenizer, real sockets.

    python -m tests.server.overhead [--rounds 5] [--tokens 900]

The server runs in a process of its own. The command prints a table and one line of JSON.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median, quantiles

import griffin
from tests.server.scripted import ScriptedEngine, served

TEXT = "The steam engine changed the world: before it, mills stood by rivers, and ships waited for the wind. "
MANY = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; figures are medians of them")
    parser.add_argument("--tokens", type=int, default=900, help="tokens in each answer")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    command = [sys.executable, "-m", "tests.server.overhead", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            report(measure(port, arguments.rounds, arguments.tokens))
        finally:
            process.terminate()


def serve() -> None:
    """Serve until the parent closes our standard input."""
    tokenizer = griffin.load().tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    engine = ScriptedEngine(text="".join(map(chr, ids)), context_length=10**6)
    with served(engine, tokenizer=tokenizer, log_level="warning") as url:
        print(url.rsplit(":", 1)[1], flush=True)
        sys.stdin.read()


def measure(port: int, rounds: int, tokens: int) -> dict[str, float]:
    ask: dict[str, object] = {"prompt": TEXT * 5, "ignore_eos": True}
    streamed = [exchange(port, {**ask, "stream": True, "max_tokens": n}) for n in (1, tokens) for _ in range(rounds)]
    whole = [exchange(port, {**ask, "max_tokens": n}) for n in (1, tokens) for _ in range(rounds)]
    idle = [exchange(port, {**ask, "stream": True, "max_tokens": 1}) for _ in range(MANY)]
    refused = [exchange(port, {**ask, "sparsity": 2}) for _ in range(MANY)]

    def per_token(times: Sequence[tuple[float, float]]) -> float:
        short, long = (median(total for _, total in part) for part in (times[:rounds], times[rounds:]))
        return (long - short) / (tokens - 1) * 1e3

    first = [first for first, _ in idle]
    return {
        "per_token_streamed_ms": per_token(streamed),
        "per_token_whole_ms": per_token(whole),
        "first_byte_ms": median(first) * 1e3,
        "first_byte_p99_ms": quantiles(first, n=100)[-1] * 1e3,
        "refusal_ms": median(total for _, total in refused) * 1e3,
    }


def exchange(port: int, body: dict[str, object]) -> tuple[float, float]:
    """The seconds from the request to the first and to the last byte of the answer."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        received = connection.recv(1 << 16)
        first = time.perf_counter() - started
        while chunk := connection.recv(1 << 16):
            received += chunk
        total = time.perf_counter() - started
    assert received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")), received[:200]
    return first, total


def report(result: dict[str, float]) -> None:
    rows = {
        "per token, streamed": "per_token_streamed_ms",
        "per token, one object": "per_token_whole_ms",
        "first byte, idle server, median": "first_byte_ms",
        "first byte, idle server, 99th percentile": "first_byte_p99_ms",
        "a refusal (400), median": "refusal_ms",
    }
    for label, name in rows.items():
        print(f"{label:<42} {result[name]:8.3f} ms")
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
