"""Answers read by a tokenizer's own response template: their thoughts, content and calls.

transformers parses. What it cannot parse is content, as the model wrote it.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.text.json_value import NoJson
from server.text.reasoning import Marks, Thought
from server.text.tokenizer import special_tokens
from server.text.tool_call import CallPart, object_text
from server.text.tool_calls import Content, Form, Part, joined
from server.text.tool_prompt import PROBE

logger = logging.getLogger("griffin")

# The fields of a message that an answer has a place for.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
CONTENT = "content"
CALLS = "tool_calls"
# Characters of a prompt's end in which the answer's beginning is looked for. The time for it is quadratic.
PROMPT_END = 8_000


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """The response template of a tokenizer.

    spec: as transformers describes it.
    """

    tokenizer: Any
    spec: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any) -> "ResponseTemplate | None":
        """None if the tokenizer has none, or one that cannot be used; then a warning says why."""
        spec = getattr(tokenizer, "response_template", None)
        if spec is None:
            return None
        try:
            tokenizer.get_response_parser(spec, prefix="")
            _require_marks(spec["fields"])
            # A field that is missing at the end is no reason to lose text.
            fields = {name: {**field, "optional": True} for name, field in spec["fields"].items()}
            return cls(tokenizer, {**spec, "fields": fields})
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            logger.warning("the tokenizer's response_template is not used: %s; answers are read without it", why)
            return None

    @property
    def fields(self) -> Mapping[str, Mapping[str, Any]]:
        fields: Mapping[str, Mapping[str, Any]] = self.spec["fields"]
        return fields

    @property
    def has_calls(self) -> bool:
        return CALLS in self.fields

    @property
    def marks(self) -> Marks | None:
        """The marks around a thought, or their patterns; None if it knows no thoughts."""
        thought = next((self.fields[name] for name in THOUGHTS if name in self.fields), None)
        return Marks(_mark(thought, "open"), _mark(thought, "close")) if thought is not None else None

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that the text must show, because the template names them."""
        text = "\n".join(_texts(self.fields))
        # Patterns escape some characters.
        text += re.sub(r"\\(.)", r"\1", text)
        return tuple(token for token in special_tokens(self.tokenizer).values() if token in text)

    def reads(self, form: Form) -> bool:
        """Whether it finds calls that are written in a form. This is tried out."""
        call = form.call.replace("NAME", PROBE).replace("ARGUMENTS", '{"a": "b"}')
        reader = TemplateReading(self, "", names=frozenset({PROBE})).reader()
        parts = [*reader.feed(form.first + call + form.last), *reader.end(cut=False)]
        return any(isinstance(part, CallPart) for part in parts)

    def parser(self, prompt: str, tools: Sequence[Mapping[str, Any]]) -> Any:
        """transformers' parser for an answer to a prompt."""
        try:
            return self.tokenizer.get_response_parser(self.spec, prefix=prompt[-PROMPT_END:], tools=list(tools))
        except Exception:
            # The prompt itself contains something that cannot be parsed.
            return self.tokenizer.get_response_parser(self.spec, prefix="", tools=list(tools))


def _require_marks(fields: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Raises:
        ValueError: a field begins at no text at all. The parser could then open and close it for ever.
    """
    for name, field in fields.items():
        # transformers knows more of patterns than re does.
        with suppress(re.error):
            if "open_pattern" in field and re.match(field["open_pattern"], ""):
                raise ValueError(f"Field '{name}': open_pattern matches an empty text")


def _mark(field: Mapping[str, Any], side: str) -> str:
    mark = field.get(side, field.get(f"{side}_pattern", ""))
    return mark if isinstance(mark, str) else mark[0]


def _texts(value: Any) -> Iterator[str]:
    """All texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


@dataclass(frozen=True, slots=True)
class TemplateReading:
    """How the answers to a request are read by a template.

    prompt: the text before the answers. tools: in the form for chat templates. names: names that a call may have.
    single: at most one call.
    """

    template: ResponseTemplate
    prompt: str
    tools: Sequence[Mapping[str, Any]] = ()
    names: frozenset[str] = frozenset()
    single: bool = False

    @property
    def shown(self) -> tuple[str, ...]:
        return self.template.shown

    def reader(self) -> "TemplateReader":
        """A reader for one answer."""
        return TemplateReader(self)


class TemplateReader:
    """Text in, parts out; the counterpart of ``AnswerReader``.

    Plain text of a thought or of the content is told as it comes, a call at its end. Text of other fields, and of calls
    that are none, is content, marks included.

    thinking: the answer is inside a thought. done: nothing more is needed.
    """

    def __init__(self, reading: TemplateReading) -> None:
        self._reading = reading
        self._fields = reading.template.fields
        self._parser = reading.template.parser(reading.prompt, reading.tools)
        # The field that the parser is in, and whether its text is told as it comes, without space around it.
        self._field: str | None = None
        self._plain = self._strips = False
        # Text that is not told yet. Space that is told only if text follows.
        self._held = self._space = ""
        # Whether the open field has text, whether content was told with its marks, whether events have come.
        self._begun, self._raw, self._read = False, False, True
        # Fields that have text.
        self._told = set[str]()
        self._calls = 0
        # What the prompt has written is known to the client.
        self._tell(self._parser.initial_events, "")
        self._held, self._space, self._calls, self._read = "", "", 0, False

    @property
    def thinking(self) -> bool:
        return self._field in THOUGHTS

    @property
    def done(self) -> bool:
        return self._reading.single and self._calls > 0

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        # By single characters: then it is known which text belongs to a call that cannot be parsed.
        for character in text:
            if self.done:
                break
            self._held += character
            try:
                events = self._parser.feed(character)
            except Exception:
                # Templates are programs and can fail as programs do.
                parts += self._give_up()
                self._parser = self._reading.template.parser("", self._reading.tools)
            else:
                parts += self._tell(events, character)
        return joined(parts)

    def end(self, *, cut: bool) -> list[Part]:
        """What is left when the answer has ended. A call that was cut is content."""
        if self.done:
            return []
        try:
            _, events = self._parser.finalize()
        except Exception:
            return self._give_up()
        parts = self._tell(events, "")
        # Where the template knows no text outside of its fields, an answer without fields would be lost.
        return joined(parts if self._read else [Content(self._held)])

    def _tell(self, events: Sequence[Mapping[str, Any]], last: str) -> list[Part]:
        """What the parser's events mean.

        Args:
            last: the newest character. A mark that is a pattern has ended before it.
        """
        parts: list[Part] = []
        for event in events:
            field = event["field"]
            if event["type"] == "region_open":
                self._open(field, last)
            elif event["type"] == "region_close":
                parts += self._close(field, event["value"], last)
            elif self._plain:
                parts += self._say(field, self._release(event["text"]))
        self._read = self._read or bool(events)
        return parts

    def _open(self, field: str, last: str) -> None:
        form = self._fields[field]
        self._field = field
        self._plain = _is_told(field) and form.get("content", "text") == "text" and form.get("transform") is None
        if not self._plain:
            return
        self._strips = form.get("content_args", {}).get("strip", True)
        self._space, self._begun, self._raw = "", self._raw, False
        if "open" in form or "open_pattern" in form:
            self._held = "" if "open" in form else last

    def _close(self, field: str, value: Any, last: str) -> list[Part]:
        form = self._fields[field]
        rest = last if "close_pattern" in form else ""
        told, self._field = self._held.removesuffix(rest), None
        if self._plain:
            # Text that another mark ends may still have it in front of it.
            self._held = rest if "open" in form or "open_pattern" in form else self._held
            self._plain = False
            return []
        self._held = rest
        if field == CALLS and (calls := self._called(value)):
            return calls
        if _is_told(field) and isinstance(value, str):
            return [_part(field, value)]
        return self._as_written(told)

    def _release(self, text: str) -> str:
        """Takes text from what is held. The parser may have held back the prompt's end, which is not the answer's."""
        if not self._read and text not in self._held:
            text = next((text[n:] for n in range(len(text)) if self._held.startswith(text[n:])), "")
        self._held = self._held.partition(text)[2] if text else self._held
        return text

    def _say(self, field: str, text: str) -> list[Part]:
        if self._strips:
            text = self._space + (text if self._begun or self._space else text.lstrip())
            said = text.rstrip()
            self._space, text = text[len(said) :], said
        if not text:
            return []
        if not self._begun and field in self._told:
            text = (self._fields[field].get("join") or "") + text
        self._begun = True
        self._told.add(field)
        return [_part(field, text)]

    def _called(self, value: Any) -> list[Part]:
        """The calls that a field's value describes; none if not all of them are calls of the request's tools."""
        try:
            calls = list(_calls(value, self._reading.names))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError, NoJson):
            return []
        parts: list[Part] = []
        for name, arguments in calls[: 1 if self._reading.single else None]:
            parts += [CallPart(self._calls, name, ""), CallPart(self._calls, None, arguments)]
            self._calls += 1
        return parts

    def _as_written(self, text: str) -> list[Part]:
        text, self._space, self._raw = self._space + text, "", True
        return [Content(text)] if text else []

    def _give_up(self) -> list[Part]:
        """All that is not told is content."""
        text, self._held, self._field, self._plain = self._held, "", None, False
        return self._as_written(text)


def _is_told(field: str) -> bool:
    return field == CONTENT or field in THOUGHTS


def _part(field: str, text: str) -> Part:
    return Thought(text) if field in THOUGHTS else Content(text)


def _calls(value: Any, names: Set[str]) -> Iterator[tuple[str, str]]:
    """Names and arguments of calls.

    Raises:
        AttributeError, LookupError, TypeError, ValueError, RecursionError, NoJson: the value is something else.
    """
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call)
        if function["name"] not in names:
            raise ValueError("unknown tool")
        yield function["name"], _arguments(function.get("arguments"))


def _arguments(value: Any) -> str:
    if value is None:
        return "{}"
    if isinstance(value, str):
        return object_text(value)
    if not isinstance(value, dict):
        raise TypeError("no object")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair cannot be sent.
    text.encode()
    return text
