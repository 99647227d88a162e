"""An agent calls two tools before it answers: each API that has tools, with its own SDK."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import anthropic
import openai
import pytest

from tests.clients.common import CODER

MOST_TURNS = 6
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
# Names, descriptions and results.
TOOLS = {
    "get_temperature": ("The current temperature in a city, in degrees Celsius.", "-7 degrees Celsius"),
    "get_population": ("How many people live in a city.", "717710 people"),
}
INSTRUCTIONS = (
    "You call functions to find facts. Once you have all the results you need, answer the user in plain words and call "
    "nothing more."
)
QUESTION = "What is the temperature in Oslo, and how many people live there?"
# The choice of a tool: a name, or a value that all APIs have.
Wanted = Literal["auto", "required", "none"] | str


@dataclass(frozen=True)
class Turn:
    """The model's text and its calls, each with id, name and arguments, and whether no call was made."""

    said: str
    calls: list[tuple[str, str, Any]]
    over: bool


class Agent(ABC):
    """A conversation about the question, with its history in the API's own objects."""

    def __init__(self, url: str, model: str, sparsity: float = 0) -> None:
        self.asked: dict[str, Any] = {"model": model, "extra_body": {"temperature": 0, "sparsity": sparsity}}
        self.history: list[Any] = [{"role": "user", "content": QUESTION}]
        self.url = url

    @abstractmethod
    def turn(self, wanted: Wanted, most: int) -> Turn:
        """The model's next turn. The turn and the results of its calls become history."""


class Chat(Agent):
    """/v1/chat/completions"""

    def turn(self, wanted: Wanted, most: int) -> Turn:
        named = {"type": "function", "function": {"name": wanted}}
        asked = {
            **self.asked,
            "messages": [{"role": "system", "content": INSTRUCTIONS}, *self.history],
            "tools": [
                {"type": "function", "function": {"name": name, "description": text, "parameters": PARAMETERS}}
                for name, (text, _) in TOOLS.items()
            ],
            "tool_choice": named if wanted in TOOLS else wanted,
            "parallel_tool_calls": wanted == "auto",
            "max_tokens": most,
        }
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            choice = self.choice(client, asked)
        message = choice.message
        self.history.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        self.history += [{"role": "tool", "tool_call_id": id, "content": TOOLS[name][1]} for id, name, _ in calls]
        if calls:
            # These are OpenAI's reasons.
            assert choice.finish_reason == ("stop" if wanted in TOOLS else "tool_calls")
        return Turn(message.content or "", [(id, name, json.loads(text)) for id, name, text in calls], not calls)

    def choice(self, client: openai.OpenAI, asked: dict[str, Any]) -> Any:
        return client.chat.completions.create(**asked).choices[0]


class StreamedChat(Chat):
    """The same with a stream and the SDK's helper."""

    def choice(self, client: openai.OpenAI, asked: dict[str, Any]) -> Any:
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            # get_final_completion raises if a limit has cut the answer.
            return stream.current_completion_snapshot.choices[0]


class Responses(Agent):
    """/v1/responses: all items of an answer go back unchanged."""

    def turn(self, wanted: Wanted, most: int) -> Turn:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            answer = self.answer(
                client,
                **self.asked,
                instructions=INSTRUCTIONS,
                input=self.history,
                tools=[
                    {"type": "function", "name": name, "description": text, "parameters": PARAMETERS, "strict": False}
                    for name, (text, _) in TOOLS.items()
                ],
                tool_choice={"type": "function", "name": wanted} if wanted in TOOLS else wanted,
                parallel_tool_calls=wanted == "auto",
                max_output_tokens=most,
            )
        self.history += [item.model_dump(exclude_none=True) for item in answer.output]
        calls = [item for item in answer.output if item.type == "function_call"]
        self.history += [
            {"type": "function_call_output", "call_id": call.call_id, "output": TOOLS[call.name][1]} for call in calls
        ]
        made = [(call.call_id, call.name, json.loads(call.arguments)) for call in calls]
        return Turn(answer.output_text, made, not calls)

    def answer(self, client: openai.OpenAI, **asked: Any) -> Any:
        return client.responses.create(**asked)


class StreamedResponses(Responses):
    """The same with a stream, whose last event has the response with all items."""

    def answer(self, client: openai.OpenAI, **asked: Any) -> Any:
        events = list(client.responses.create(**asked, stream=True))
        items = [event.item for event in events if event.type == "response.output_item.done"]
        whole = events[-1].response
        assert [item.id for item in items] == [item.id for item in whole.output]
        return whole


class Messages(Agent):
    """/v1/messages of Anthropic: tool_use blocks, then a tool_result for each."""

    def turn(self, wanted: Wanted, most: int) -> Turn:
        choice = {"auto": "auto", "required": "any", "none": "none"}.get(wanted, "tool")
        single = {} if wanted in ("auto", "none") else {"disable_parallel_tool_use": True}
        with anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0) as client:
            message = self.message(
                client,
                **self.asked,
                system=INSTRUCTIONS,
                messages=self.history,
                tools=[
                    {"name": name, "description": text, "input_schema": PARAMETERS} for name, (text, _) in TOOLS.items()
                ],
                tool_choice={"type": choice, **single, **({"name": wanted} if choice == "tool" else {})},
                max_tokens=most,
            )
        self.history.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
        calls = [block for block in message.content if block.type == "tool_use"]
        if calls:
            assert message.stop_reason == "tool_use"
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": TOOLS[call.name][1]} for call in calls
            ]
            self.history.append({"role": "user", "content": results})
        said = "".join(block.text for block in message.content if block.type == "text")
        return Turn(said, [(call.id, call.name, call.input) for call in calls], not calls)

    def message(self, client: anthropic.Anthropic, **asked: Any) -> Any:
        return client.messages.create(**asked)


class StreamedMessages(Messages):
    """The same with a stream and the SDK's helper."""

    def message(self, client: anthropic.Anthropic, **asked: Any) -> Any:
        with client.messages.stream(**asked) as stream:
            return stream.get_final_message()


APIS = [Chat, StreamedChat, Responses, StreamedResponses, Messages, StreamedMessages]


@pytest.mark.parametrize("api", APIS)
def test_required_calls(tiny_url: str, api: Callable[..., Agent]) -> None:
    """Any weights call one of the tools, then the other one by its name, and then answer with words."""
    agent = api(tiny_url, "tiny")
    [(first_id, name, arguments)] = agent.turn("required", 60).calls
    [other] = TOOLS.keys() - {name}
    [(second_id, second, others)] = agent.turn(other, 60).calls
    last = agent.turn("none", 8)

    assert second == other
    assert first_id != second_id
    assert list(arguments) == list(others) == ["city"]
    assert (last.calls, last.over) == ([], True)
    assert last.said


@pytest.mark.parametrize(
    ("api", "sparsity"), [(Chat, 0), (StreamedChat, 0.25), (Responses, 0), (StreamedResponses, 0.25), (Messages, 0)]
)
def test_an_agent_calls_two_tools(coder_url: str, api: Callable[..., Agent], sparsity: float) -> None:
    """With tool choice auto the model itself calls both tools and then answers."""
    agent = api(coder_url, CODER, sparsity)
    turns = [agent.turn("auto", 200)]
    while not turns[-1].over and len(turns) < MOST_TURNS:
        turns.append(agent.turn("auto", 200))

    called = [(name, arguments) for turn in turns for _, name, arguments in turn.calls]
    assert called == [("get_temperature", {"city": "Oslo"}), ("get_population", {"city": "Oslo"})]
    assert "-7" in turns[-1].said
    assert "717710" in turns[-1].said.replace(",", "")
