"""A conversation as a model's chat template takes it: tools, calls and instructions that it has no place for become
texts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.text.tokenizer import TemplateFailed, Tokenizer, render_chat, special_tokens, template_text
from server.text.tool_calls import HERMES, Form, form_of

Message = dict[str, Any]

# Words that no template contains.
PROBE = "griffin_probe"
_PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": ["a"]}
_TOOL = {"type": "function", "function": {"name": PROBE, "description": "a", "parameters": _PARAMETERS}}
INSTRUCTIONS = """# Tools

You can call functions. These are their signatures, in JSON, between <tools> and </tools>:
<tools>
{tools}
</tools>

To call a function, answer with its name and its arguments as a JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""
# Mistral's templates refuse ids of any other length.
SHORT_ID = 9


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """What a model's chat template does with tools and instructions. Found out once.

    takes_tools: it describes tools to the model. takes_system: it has a place for instructions.
    takes_late_system: it shows instructions also after the conversation's beginning.
    short_ids: it needs short ids of calls.
    form: how the model writes calls.
    """

    takes_tools: bool
    takes_system: bool
    takes_late_system: bool
    short_ids: bool
    form: Form

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ToolSupport":
        text = template_text(tokenizer)
        asked = [{"role": "user", "content": "Hi"}]
        takes_tools = bool(text) and _shows(tokenizer, asked, tools=[_TOOL])
        takes_system = bool(text) and _shows(tokenizer, [{"role": "system", "content": PROBE}, *asked])
        takes_late_system = bool(text) and _shows(tokenizer, [*asked, {"role": "system", "content": PROBE}])
        form = form_of(text, special_tokens(tokenizer).values()) if takes_tools else HERMES
        return cls(takes_tools, takes_system, takes_late_system, f"length != {SHORT_ID}" in text, form)

    def prepared(self, conversation: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
        """The conversation for the template. If the template takes no ``tools``, they are added to the conversation."""
        if not self.takes_late_system:
            conversation = _without_late_system(conversation)
        if not self.takes_tools:
            return self._instructed(_spelled(conversation), tools)
        return [_with_short_ids(message) for message in conversation] if self.short_ids else conversation

    def _instructed(self, conversation: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
        if not tools:
            return conversation
        text = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        role = "system" if self.takes_system else "user"
        # An input may be nothing but an empty thought.
        first = conversation[0] if conversation else {"role": None}
        if first["role"] == role:
            pair = (first["content"], text) if self.takes_system else (text, first["content"])
            return [{**first, "content": "\n\n".join(filter(None, pair))}, *conversation[1:]]
        return [{"role": role, "content": text}, *conversation]


def _shows(tokenizer: Tokenizer, conversation: list[Message], **options: Any) -> bool:
    """Whether the template puts the probe into the prompt."""
    try:
        return PROBE in render_chat(tokenizer, conversation, {"add_generation_prompt": True, **options})
    except TemplateFailed:
        return False


def _without_late_system(conversation: list[Message]) -> list[Message]:
    """Instructions after the beginning become texts of the user, joined to the user's turn beside them."""
    told: list[Message] = []
    # Whether the last message contains such a text.
    joins = False
    for message in conversation:
        late = message["role"] == "system" and bool(told)
        last = told[-1] if told else {}
        if (late and last["role"] in ("system", "user")) or (joins and message["role"] == "user"):
            told[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            told.append({**message, "role": "user"} if late else message)
        joins = late and told[-1]["role"] == "user"
    return told


def _spelled(conversation: list[Message]) -> list[Message]:
    """Calls and their answers as texts of the assistant and the user."""
    spelled: list[Message] = []
    for message in conversation:
        plain = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")}
        calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
        plain["content"] = "\n".join([*filter(None, [message["content"]]), *calls]) if calls else message["content"]
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            plain = {"role": "user", "content": text, "answers": True}
        last = spelled[-1] if spelled else {}
        if plain["role"] == "user" and last.get("answers"):
            # Many templates refuse two turns of the user in a row.
            last["content"] += f"\n{plain['content']}"
            last["answers"] = plain.get("answers", False)
        else:
            spelled.append(plain)
    return [{name: value for name, value in message.items() if name != "answers"} for message in spelled]


def _call(function: dict[str, Any]) -> str:
    written = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _with_short_ids(message: Message) -> Message:
    short = dict(message)
    if "tool_call_id" in message:
        short["tool_call_id"] = _short(message["tool_call_id"])
    if "tool_calls" in message:
        short["tool_calls"] = [{**call, "id": _short(call["id"])} for call in message["tool_calls"]]
    return short


def _short(id: str) -> str:
    """A short id; the same for the same id."""
    return hashlib.sha256(id.encode()).hexdigest()[:SHORT_ID]
