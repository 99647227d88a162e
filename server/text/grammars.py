"""Schemas, expressions and grammars become constraints on the model's tokens, by llguidance."""

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from griffin.constraint import Grammar
from griffin.errors import InvalidRequest
from server.text.grammar_checker import PARSER_LIMITS, FormRefused, GrammarChecker, TokenizerRefused
from server.text.schema_texts import spelled_out
from server.text.tokenizer import Tokenizer

# Number of compiled forms that are kept; the least recently used is dropped.
KEPT = 16


class NoGrammars(InvalidRequest):
    """This model's tokenizer allows no grammar at all."""


class Grammars:
    """Makes the grammars of one model.

    The tokenizer's vocabulary is read when the first grammar is needed, which takes up to a second.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """
        Args:
            vocabulary_size: the model's, which may exceed the tokenizer's.
            end_ids: tokens that end an answer; they are allowed wherever the grammar may end.
        """
        self._tokenizer, self._vocabulary_size, self._end_ids = tokenizer, vocabulary_size, end_ids
        self._checker: GrammarChecker | None = None
        self._vocabulary: LLTokenizer | None = None
        # Why this tokenizer allows no grammar.
        self._refusal: TokenizerRefused | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        # Waited for without a thread: other requests need the threads of the pool.
        self._turn = asyncio.Lock()

    async def of_schema(self, schema: Mapping[str, Any] | None, param: str) -> Grammar:
        """JSON of a schema, in one line; None is any object.

        Args:
            param: the field that the schema came from, for errors.

        Raises:
            InvalidRequest: it cannot be compiled, or compiling costs too much.
            NoGrammars: nor can any other.
            CheckerFailed: no form can be compiled, by a fault of the server.
        """
        return await self._of("json_object" if schema is None else "json_schema", schema, param, spelled_out(schema))

    async def of_regex(self, regex: str, param: str) -> Grammar:
        """Texts that a regular expression matches from start to end; otherwise like ``of_schema``."""
        return await self._of("regex", regex, param, [regex])

    async def of_choice(self, texts: Sequence[str], param: str) -> Grammar:
        """One of these texts; otherwise like ``of_schema``."""
        return await self._of("choice", texts, param, texts)

    async def of_lark(self, grammar: str, param: str, schemas: Sequence[Mapping[str, Any]] = ()) -> Grammar:
        """Texts of a grammar in llguidance's variant of Lark; otherwise like ``of_schema``.

        A special token is written as its text: ``start: <|tool_call|> %json {...}``.

        Args:
            schemas: those in the grammar. Their texts are spelled out, and must not contain special tokens.
        """
        return await self._of("lark", grammar, param, spelled_out(list(schemas)))

    async def of_grammar(self, grammar: str, param: str) -> Grammar:
        """Texts of a client's grammar, in Lark or in GBNF; otherwise like ``of_schema``."""
        return await self._of("grammar", grammar, param)

    def close(self) -> None:
        """End the checker's process after its current form. A later form would start it again."""
        with self._lock:
            if self._checker is not None:
                self._checker.close()

    async def _of(self, kind: str, value: Any, param: str, spelled: Iterable[Any] = ()) -> Grammar:
        """
        Args:
            spelled: what answers may spell out, looked at if the form is compiled. A grammar's own texts are not among
                it: they may name special tokens.
        """
        key = f"{kind} {json.dumps(value)}"
        if (known := self._known(key)) is not None:
            return _TokenGrammar(known, param)
        try:
            return _TokenGrammar(await self._in_turn(key, kind, value, spelled), param)
        except FormRefused as refusal:
            raise InvalidRequest(f"{param}: {refusal}", param) from None
        except TokenizerRefused as refusal:
            raise NoGrammars(
                f"{param}: not with this model: its tokenizer's tokens cannot be turned into bytes ({refusal})", param
            ) from None

    def _known(self, key: str) -> LLMatcher | None:
        """A compiled form, which becomes the latest used; None if it is not kept."""
        with suppress(KeyError):
            # Another thread may drop it at any time.
            self._compiled.move_to_end(key)
            return self._compiled[key]
        return None

    async def _in_turn(self, key: str, kind: str, value: Any, spelled: Iterable[Any]) -> LLMatcher:
        """Compile one form at a time, so that many forms cannot take the processor or the pool's threads."""
        await self._turn.acquire()
        work = asyncio.ensure_future(asyncio.to_thread(self._compile, key, kind, value, spelled))
        # A thread continues when its request is cancelled, and keeps its turn until it ends.
        work.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(work)

    def _compile(self, key: str, kind: str, value: Any, spelled: Iterable[Any]) -> LLMatcher:
        """Runs in a thread."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if key not in self._compiled:
                checker = self._running_checker()
                # Read here while the checker reads its copy.
                vocabulary = self._known_vocabulary()
                self._require_no_special(spelled, vocabulary)
                grammar = checker.grammar(kind, value)
                matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**PARSER_LIMITS))
                if matcher.is_error():
                    raise FormRefused(" ".join(matcher.get_error().split())[:300])
                self._compiled[key] = matcher
            self._compiled.move_to_end(key)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return self._compiled[key]

    def _require_no_special(self, spelled: Iterable[Any], vocabulary: LLTokenizer) -> None:
        """Check that what a form spells out has no special token's text: the parser could not take that text.

        Raises:
            FormRefused: the form contains such a text.
        """
        text = json.dumps(list(spelled), ensure_ascii=False)
        for id, token in getattr(self._tokenizer, "added_tokens_decoder", {}).items():
            if token.content in text and vocabulary.is_special_token(id):
                raise FormRefused(f"contains {token.content}, which is a special token of this model; leave it out")

    def _running_checker(self) -> GrammarChecker:
        if self._checker is None or not self._checker.runs:
            self._checker = GrammarChecker(self._spelled(), self._vocabulary_size, self._end_ids)
        return self._checker

    def _known_vocabulary(self) -> LLTokenizer:
        if self._vocabulary is None:
            ends = sorted(self._end_ids) or None
            try:
                self._vocabulary = LLTokenizer(self._spelled(), n_vocab=self._vocabulary_size, eos_token=ends)
            except ValueError as error:
                self._refusal = TokenizerRefused(" ".join(str(error).split())[:200])
                raise self._refusal from None
        return self._vocabulary

    def _spelled(self) -> str:
        """The tokenizer in the JSON form of the tokenizers package."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerRefused("it is not of the fast kind")
        text: str = backend.to_str()
        return text


class _TokenGrammar:
    """``griffin.constraint.Grammar``"""

    ends = True

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher, self._param = matcher, param

    def begin(self) -> "_TokenConstraint":
        return _TokenConstraint(self._matcher.deep_copy(), self._param)


class _TokenConstraint:
    """``griffin.constraint.Constraint``"""

    free = done = False

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher, self._param = matcher, param
        # Tokens that must follow; None: not computed yet. The rest of a longer run is never tokenized again.
        self._forced: list[int] | None = None
        self._forced_at_mark: list[int] | None = None
        self._since_mark = 0

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    def forced(self) -> Sequence[int]:
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced

    def taken(self, ids: Sequence[int]) -> int:
        return self._matcher.validate_tokens(list(ids))

    def mask(self) -> bytes:
        bits = self._matcher.compute_bitmask()
        self._require()
        return bits

    def advance(self, id: int) -> None:
        self._matcher.consume_token(id)
        self._require()
        self._since_mark += 1
        left = self._forced[1:] if self._forced else []
        self._forced = left or None

    def mark(self) -> None:
        self._since_mark, self._forced_at_mark = 0, self._forced

    def back(self) -> None:
        if self._since_mark:
            self._matcher.rollback(self._since_mark)
        self._since_mark, self._forced = 0, self._forced_at_mark

    def _require(self) -> None:
        """
        Raises:
            InvalidRequest: the parser has stopped with an error.
        """
        if self._matcher.is_error():
            why = " ".join(self._matcher.get_error().removesuffix("<non-verbose/>").split())[:200]
            raise InvalidRequest(f"{self._param}: the answer cannot follow this form any further ({why})", self._param)
