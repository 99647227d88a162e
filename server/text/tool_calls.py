"""A model's answer becomes text and calls, piece by piece, by the form in which the model writes calls."""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from server.text.json_value import SPACE, NoJson
from server.text.reasoning import Thought
from server.text.tool_call import CallPart, CallText

NAMED_MARKS = ("[CALL_ID]", "[ARGS]")


@dataclass(frozen=True, slots=True)
class Form:
    """How a family of models marks calls. Between the marks there is a JSON object, or a list of them.

    opens: marks after which a call must come. closes: marks that may come after it.
    inline: bare JSON counts within a line, too, because the family writes its calls so; but not within other JSON.
    named: the tool's name may stand before the arguments, with marks inside, as in ``[TOOL_CALLS]name[ARGS]{...}``.
    first, last: around all calls, where calls must be written. call: one of them. between: two of them; None: there is
    only one.
    """

    name: str
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    inline: bool = False
    named: bool = False
    first: str = ""
    call: str = '{"name": "NAME", "arguments": ARGUMENTS}'
    between: str | None = None
    last: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opens + self.closes + (NAMED_MARKS if self.named else ())


# The first one counts whose opening mark a model's template or vocabulary has.
HERMES = Form(
    "hermes", ("<tool_call>",), ("</tool_call>",),
    first="<tool_call>\n", between="\n</tool_call>\n<tool_call>\n", last="\n</tool_call>",
)  # fmt: skip
PLAIN = Form("json")
FORMS = (
    HERMES,
    Form("mistral", ("[TOOL_CALLS]",), named=True, first="[TOOL_CALLS][", between=", ", last="]"),
    Form("granite", ("<|tool_call|>",), ("<|/tool_call|>",), first="<|tool_call|>[", between=", ", last="]"),
    Form("llama", ("<|python_tag|>",), inline=True, call='{"name": "NAME", "parameters": ARGUMENTS}'),
    PLAIN,
)
# Of Mistral's newer models.
NAMED_FORM = Form(
    "mistral", ("[TOOL_CALLS]",), named=True, call="[TOOL_CALLS]NAME[ARGS]ARGUMENTS", between=""
)  # fmt: skip
# What models put around a call instead of their own marks. It counts at the beginning of a line.
TAGS = ("<tool_call>", "<tools>", "<function_call>", "<response>", "<json>", "<JSON>", "<xml>")
FENCE = re.compile(r"```\w*\s*")
NAMED = re.compile(r"([A-Za-z0-9_.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class NoCall:
    """A call that has begun to be told, and is none: its JSON breaks. ``text`` is all of it, marks included."""

    index: int
    text: str


Part: TypeAlias = Content | Thought | CallPart | NoCall


def form_of(template: str, special: Iterable[str]) -> Form:
    """The form of a model.

    Args:
        template: of its chat.
        special: its special tokens.
    """
    known = set(special)
    if "[ARGS]" in template or "[ARGS]" in known:
        return NAMED_FORM
    return next(form for form in FORMS if form is PLAIN or any(m in template or m in known for m in form.opens))


class ToolCallReader:
    """Text in, parts out. Text that may be the beginning of a call, and space around calls, is held back.

    calls: how many are complete. done: nothing more is wanted, as with ``single`` after one call.
    """

    def __init__(self, form: Form, tools: Set[str], *, single: bool = False, required: bool = False) -> None:
        """
        Args:
            tools: names that a call may have.
            single: at most one call.
            required: the text is held to calls, so that whatever is held back is the beginning of one.
        """
        self._form, self._tools, self._single, self._required = form, tools, single, required
        self._held, self._raw, self._lead_at = "", "", 0
        self._state = "text"
        self._begins_line, self._sure, self._listed = True, False, False
        # Braces and brackets that the content has opened and not closed.
        self._depth = 0
        self._closes: tuple[str, ...] = ()
        self._call: CallText | None = None
        self._told = 0
        self._index = 0
        self.calls = 0

    @property
    def done(self) -> bool:
        return self._single and self.calls > 0

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        self._held += text
        while self._held and not self.done and getattr(self, f"_in_{self._state}")(parts):
            pass
        return joined(parts)

    def end(self, *, cut: bool) -> list[Part]:
        """What is left when the answer has ended.

        Args:
            cut: by a limit of tokens or a stop string. A call that it cut stays; another incomplete one is text.
        """
        parts: list[Part] = []
        if self.done:
            return parts
        if self._call is not None:
            try:
                self._call.finish()
                self._tell(parts)
                self._complete()
            except NoJson:
                self._give_up(parts, cut)
        elif self._state in ("begin", "item"):
            self._give_up(parts, cut)
        elif cut and self._required:
            pass
        elif self._state == "text" or not any(close.startswith(self._held.strip()) for close in self._closes):
            parts.append(Content(self._held))
        return joined(parts)

    def _give_up(self, parts: list[Part], cut: bool) -> None:
        if self._told:
            if not cut:
                parts.append(NoCall(self._index, self._raw))
        elif not (cut and (self._sure or self._required)):
            parts.append(Content(self._raw + self._held))

    # Each state takes what it can of the held text. False: it needs more.

    def _in_text(self, parts: list[Part]) -> bool:
        place, end = self._lead()
        before = self._held[:place]
        text = before.rstrip()
        if text:
            self._say(parts, text)
            self._begins_line = False
        if place == len(self._held) or end is None:
            self._held = self._held[len(text) :]
            return False
        self._raw, self._lead_at = self._held[len(text) : end], place - len(text)
        self._held = self._held[end:]
        self._state = "begin"
        return True

    def _lead(self) -> tuple[int, int | None]:
        """Where a call may begin, or the text ends, and where its JSON begins; None if that is not decided yet."""
        held = self._held
        for place in (match.start() for match in re.finditer(r"[<\[`{]", held)):
            rest = held[place:]
            if opened := next((mark for mark in self._form.opens if rest.startswith(mark)), None):
                self._sure, self._closes = True, self._form.closes
                return place, place + len(opened)
            if any(mark.startswith(rest) for mark in self._form.opens):
                return place, None
            if self._is_line_start(place) or (
                self._form.inline and rest[0] == "{" and not self._depth_after(held[:place])
            ):
                length = self._wrapping(rest)
                if length is None or length >= 0:
                    self._sure = False
                    return place, None if length is None else place + length
        return len(held), None

    def _say(self, parts: list[Part], text: str) -> None:
        parts.append(Content(text))
        self._depth = self._depth_after(text)

    def _depth_after(self, text: str) -> int:
        return max(0, self._depth + sum(map(text.count, "{[")) - sum(map(text.count, "}]")))

    def _is_line_start(self, place: int) -> bool:
        line = self._held[:place].rpartition("\n")
        return not line[2].strip() and (bool(line[1]) or self._begins_line)

    def _wrapping(self, text: str) -> int | None:
        """Characters of a fence and a tag before JSON; -1: no JSON comes. None: that is not decided yet."""
        closes: list[str] = []
        place = 0
        if "```".startswith(text):
            return None
        if fence := FENCE.match(text):
            place = fence.end()
            closes.append("```")
        if tag := next((tag for tag in TAGS if text.startswith(tag, place)), None):
            place += len(tag)
            closes.insert(0, tag.replace("<", "</"))
        place += len(text[place:]) - len(text[place:].lstrip())
        rest = text[place:]
        if not rest or (tag is None and any(known.startswith(rest) for known in TAGS)):
            return None
        self._closes = tuple(closes)
        return place if rest[0] in "{[" else -1

    def _in_begin(self, parts: list[Part]) -> bool:
        self._skip_space()
        if not self._held:
            return False
        first = self._held[0]
        if first == "`":
            return self._in_fence(parts)
        if first == "[":
            self._swallow(1)
            self._listed, self._state = True, "item"
        elif first == "{":
            self._listed, self._state = False, "call"
            self._call = CallText(self._tools, sure=self._sure)
        elif self._sure and self._form.named and len(self._held) < LONGEST_NAME:
            return self._in_name(parts)
        else:
            self._break(parts)
        return True

    def _in_fence(self, parts: list[Part]) -> bool:
        """A fence inside of marks."""
        fence = FENCE.match(self._held)
        if fence and fence.end() < len(self._held):
            self._swallow(fence.end())
            self._closes = ("```", *self._closes)
        elif fence or "```".startswith(self._held):
            return False
        else:
            self._break(parts)
        return True

    def _in_name(self, parts: list[Part]) -> bool:
        if found := NAMED.match(self._held):
            self._swallow(found.end())
            try:
                self._call = CallText(self._tools, sure=True, name=found[1])
                self._listed, self._state = False, "call"
            except NoJson:
                self._break(parts)
            return True
        if re.fullmatch(r"[\w.\[\]-]+\s*", self._held):
            return False
        self._break(parts)
        return True

    def _in_item(self, parts: list[Part]) -> bool:
        """In a list, where a call should begin."""
        self._skip_space()
        if self._held.startswith("{"):
            self._call, self._state = CallText(self._tools, sure=self._sure), "call"
        elif self._held.startswith("]") and self.calls:
            self._swallow(1)
            self._state = "after"
        elif self._held:
            self._break(parts)
        return bool(self._held)

    def _in_call(self, parts: list[Part]) -> bool:
        call = self._call
        assert call is not None
        taken = 0
        try:
            while taken < len(self._held) and not call.ended and call.take(self._held[taken]):
                taken += 1
        except NoJson:
            self._swallow(taken)
            self._tell(parts)
            self._break(parts)
            return True
        self._swallow(taken)
        self._tell(parts)
        if call.ended:
            self._complete()
        return bool(self._held)

    def _tell(self, parts: list[Part]) -> None:
        """What is new of the call, once its arguments have begun."""
        call = self._call
        assert call is not None
        if not (call.name and call.arguments):
            return
        if not self._told:
            parts.append(CallPart(self._index, call.name, ""))
        if fresh := call.arguments[self._told :]:
            parts.append(CallPart(self._index, None, fresh))
        self._told = len(call.arguments)

    def _complete(self) -> None:
        self.calls += 1
        self._next_call()
        self._state = "between" if self._listed else "after"

    def _next_call(self) -> None:
        self._index += self._told > 0
        self._call, self._told, self._raw, self._lead_at = None, 0, "", 0

    def _in_between(self, parts: list[Part]) -> bool:
        """In a list, after a call."""
        self._skip_space()
        self._raw = ""
        if not self._held:
            return False
        if self._held[0] in ",]":
            self._state = "item" if self._held[0] == "," else "after"
            self._held = self._held[1:]
        else:
            self._state = "after"
        return True

    def _in_after(self, parts: list[Part]) -> bool:
        """After a call or a list of them: marks that close it, space, and what separates it from another."""
        self._held = self._held.lstrip()
        if close := next((mark for mark in self._closes if self._held.startswith(mark)), None):
            self._held = self._held[len(close) :]
            return True
        if not self._held or any(mark.startswith(self._held) for mark in self._closes):
            return False
        if self._held[0] in ";,":
            rest = self._held[1:].lstrip()
            if not rest:
                return False
            self._held = rest if rest[0] == "{" else self._held
        # Another may stand between the same marks.
        self._state = "begin" if self._held[0] == "{" else "text"
        self._sure, self._begins_line = False, True
        return True

    def _break(self, parts: list[Part]) -> None:
        """It is no call. What was held back of it is text, in which another call may begin."""
        if self._told:
            parts.append(NoCall(self._index, self._raw))
        else:
            cut = self._lead_at + 1
            self._held = self._raw + self._held
            self._say(parts, self._held[:cut])
            self._held = self._held[cut:]
        self._next_call()
        self._state, self._begins_line = "text", False

    def _skip_space(self) -> None:
        self._swallow(len(self._held) - len(self._held.lstrip(SPACE)))

    def _swallow(self, length: int) -> None:
        self._raw += self._held[:length]
        self._held = self._held[length:]


@dataclass(frozen=True, slots=True)
class CallReading:
    """How the calls in the answers to a request are read; see ``ToolCallReader``."""

    form: Form
    tools: frozenset[str]
    single: bool
    required: bool = False

    def reader(self) -> ToolCallReader:
        """For one answer."""
        return ToolCallReader(self.form, self.tools, single=self.single, required=self.required)


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same in as few parts as can be; empty ones are left out."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, Content | Thought):
            if isinstance(last, Content | Thought) and type(last) is type(part):
                result[-1] = type(part)(last.text + part.text)
            elif part.text:
                result.append(part)
        elif isinstance(part, CallPart) and part.name is None and isinstance(last, CallPart) and last.name is None:
            result[-1] = CallPart(part.index, None, last.arguments + part.arguments)
        else:
            result.append(part)
    return result
