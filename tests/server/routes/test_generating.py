"""A route declares once that it generates; the queue, the document and the errors follow from this."""

import ast
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.routes import anthropic, chat, completions, responses
from server.settings import Settings
from tests.server.client import metric
from tests.server.scripted import ScriptedEngine, served, wait_until

ROOT = Path(__file__).parents[3]
FILES = {
    "/v1/completions": "completions.py",
    "/v1/chat/completions": "chat.py",
    "/v1/responses": "responses.py",
    "/v1/messages": "anthropic.py",
}
GENERATING = tuple(FILES)


def literals(path: Path) -> set[str]:
    """The texts that are values: no docstrings, and no parts of f-strings, such as the printed example."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    others = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    others |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in others]
    return {node.value for node in constants if isinstance(node.value, str)}


@pytest.mark.parametrize(("path", "file"), FILES.items())
def test_a_path_stands_in_one_file(path: str, file: str) -> None:
    """The path is a value in one file only; docstrings and messages may name it."""
    assert [each for each in (ROOT / "server").rglob("*.py") if path in literals(each)] == [
        ROOT / "server/routes" / file
    ]


def test_the_routers_declare_the_paths() -> None:
    """Each router declares the endpoints that stream."""
    assert (
        tuple(path for module in (completions, chat, responses, anthropic) for path in module.router.streams)
        == GENERATING
    )


@pytest.mark.parametrize("path", GENERATING)
def test_the_document_describes_streams_and_refusals(path: str) -> None:
    """Only these endpoints have 429 and 504, and a description of their events."""
    document = create_app(Settings()).openapi()
    responses = document["paths"][path]["post"]["responses"]

    assert {"429", "504"} <= set(responses)
    (streamed,) = [schema["anyOf"] for kind, schema in _schemas(responses["200"]) if kind == "text/event-stream"]
    names = [each["$ref"].rsplit("/", 1)[1] for each in streamed]
    assert set(names) <= set(document["components"]["schemas"])
    others = [
        operation for name, path in document["paths"].items() if name not in GENERATING for operation in path.values()
    ]
    assert not any({"429", "504"} & set(operation["responses"]) for operation in others)


def _schemas(response: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, content["schema"]) for kind, content in response["content"].items()]


@pytest.mark.parametrize("path", GENERATING)
def test_without_room_a_body_is_not_even_read(path: str) -> None:
    """A full queue gives 429 although the body is not JSON; endpoints that do not generate still answer."""
    gate = threading.Event()
    with served(ScriptedEngine(gate=gate), queue_size=0) as url:
        running = threading.Thread(target=httpx.post, args=(f"{url}/v1/completions",), kwargs={"json": {"prompt": "x"}})
        running.start()
        wait_until(lambda: metric(url, "griffin_num_requests_running") == 1)
        refused = httpx.post(f"{url}{path}", content=b"no JSON", headers={"content-type": "application/json"})
        tokens = httpx.post(f"{url}/tokenize", json={"prompt": "x"})
        gate.set()
        running.join()

    assert (refused.status_code, tokens.status_code) == (429, 200)
