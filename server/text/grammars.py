"""Grammars: schemas, expressions and grammars become constraints on the served tokenizer's tokens, by llguidance."""

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from griffin.constraint import Grammar
from griffin.errors import InvalidRequest
from server.text.grammar_checker import PARSER_LIMITS, FormRefused, GrammarChecker, TokenizerRefused
from server.text.tokenizer import Tokenizer

# So many compiled forms are kept, the latest used.
KEPT = 16
# Forms whose texts are all spelled. A grammar may name special tokens.
SPELLED = ("json_schema", "regex", "choice")


class Grammars:
    """Makes the grammars of one model.

    The tokenizer's vocabulary is read at the first need, which takes up to a second.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """
        Args:
            vocabulary_size: of the model, which may have more tokens than the tokenizer.
            end_ids: end an answer; they may follow wherever a grammar may end.
        """
        self._tokenizer, self._vocabulary_size, self._end_ids = tokenizer, vocabulary_size, end_ids
        self._checker: GrammarChecker | None = None
        self._vocabulary: LLTokenizer | None = None
        # Why there is none.
        self._refusal: TokenizerRefused | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        # Before a thread is taken: others need those of the pool.
        self._turn = asyncio.Lock()

    async def of_schema(self, schema: Mapping[str, Any] | None, param: str) -> Grammar:
        """JSON that a schema describes, in one line; None is any object.

        Args:
            param: the field that it comes from, for errors.

        Raises:
            InvalidRequest: it cannot be compiled, or takes too much.
            CheckerFailed: no form can be, by a fault of the server.
        """
        return await self._of("json_object" if schema is None else "json_schema", schema, param)

    async def of_regex(self, regex: str, param: str) -> Grammar:
        """Texts that a regular expression matches as a whole; else like ``of_schema``."""
        return await self._of("regex", regex, param)

    async def of_choice(self, texts: Sequence[str], param: str) -> Grammar:
        """One of these texts; else like ``of_schema``."""
        return await self._of("choice", texts, param)

    async def of_lark(self, grammar: str, param: str) -> Grammar:
        """Texts of a grammar in Lark's form, as llguidance has it; else like ``of_schema``.

        A special token is written as it is spelled: ``start: <|tool_call|> %json {...}``.
        """
        return await self._of("lark", grammar, param)

    async def of_grammar(self, grammar: str, param: str) -> Grammar:
        """Texts of a client's grammar, in Lark's form or in GBNF; else like ``of_schema``."""
        return await self._of("grammar", grammar, param)

    def close(self) -> None:
        """End the checker's process, after the form that it reads; a further form would start it anew."""
        with self._lock:
            if self._checker is not None:
                self._checker.close()

    async def _of(self, kind: str, value: Any, param: str) -> Grammar:
        key = f"{kind} {json.dumps(value)}"
        if (known := self._known(key)) is not None:
            return _TokenGrammar(known, param)
        try:
            return _TokenGrammar(await self._in_turn(key, kind, value), param)
        except FormRefused as refusal:
            raise InvalidRequest(f"{param}: {refusal}", param) from None
        except TokenizerRefused as refusal:
            raise InvalidRequest(
                f"{param}: not with this model: the bytes of its tokenizer's tokens are not known ({refusal})", param
            ) from None

    def _known(self, key: str) -> LLMatcher | None:
        """One that is compiled, which is now the latest used."""
        with suppress(KeyError):
            # A thread may drop it at any time.
            self._compiled.move_to_end(key)
            return self._compiled[key]
        return None

    async def _in_turn(self, key: str, kind: str, value: Any) -> LLMatcher:
        """One at a time: no crowd of forms takes the processor from the engine, or the pool's threads."""
        await self._turn.acquire()
        work = asyncio.ensure_future(asyncio.to_thread(self._compile, key, kind, value))
        # A thread goes on when its request is given up, and so does its turn.
        work.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(work)

    def _compile(self, key: str, kind: str, value: Any) -> LLMatcher:
        """In a thread."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if key not in self._compiled:
                checker = self._running_checker()
                # Read here while the checker reads it.
                vocabulary = self._known_vocabulary()
                if kind in SPELLED:
                    self._require_no_special(value, vocabulary)
                grammar = checker.grammar(kind, value)
                matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**PARSER_LIMITS))
                if matcher.is_error():
                    raise FormRefused(" ".join(matcher.get_error().split())[:300])
                self._compiled[key] = matcher
            self._compiled.move_to_end(key)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return self._compiled[key]

    def _require_no_special(self, value: Any, vocabulary: LLTokenizer) -> None:
        """The parser would spell the text of a special token by that token, and not take it then.

        Raises:
            FormRefused: a form has such text.
        """
        text = json.dumps(value, ensure_ascii=False)
        for id, token in getattr(self._tokenizer, "added_tokens_decoder", {}).items():
            if token.content in text and vocabulary.is_special_token(id):
                raise FormRefused(f"has {token.content} in it, which is a special token of this model; leave it out")

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
        """The tokenizer, as the tokenizers package writes it."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerRefused("it is not of the fast kind")
        text: str = backend.to_str()
        return text


class _TokenGrammar:
    """``griffin.constraint.Grammar``"""

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher, self._param = matcher, param

    def begin(self) -> "_TokenConstraint":
        return _TokenConstraint(self._matcher.deep_copy(), self._param)


class _TokenConstraint:
    """``griffin.constraint.Constraint``"""

    free = done = False

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher, self._param = matcher, param
        # Tokens that must follow; None: not known yet. Those that a longer run had left are never spelled anew.
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
            InvalidRequest: the parser has given up.
        """
        if self._matcher.is_error():
            why = " ".join(self._matcher.get_error().removesuffix("<non-verbose/>").split())[:200]
            raise InvalidRequest(f"{self._param}: the answer cannot be held to it any further ({why})", self._param)
