"""Grammars over a real tokenizer: random weights give answers that fit their schemas, and hurtful forms do no harm."""

import asyncio
import copy
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import jsonschema
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers
from transformers import LlamaForCausalLM

from griffin import Checkpoint, Engine, Pruning, Sampling, Verification
from griffin.constraint import Grammar
from griffin.errors import InvalidRequest
from server.loader import Loaded
from server.service import Service
from server.settings import Settings
from server.text.grammars import KEPT, Grammars
from server.text.tokenizer import Tokenizer
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, wait_until
from tests.server.text.schemas import KINDS
from tests.server.tiny_checkpoint import CONFIG, VOCABULARY

EACH = 55
# No times: they may have a leap second, which this package does not know.
FORMATS = jsonschema.FormatChecker(("date", "email", "uuid", "ipv4"))
WAYS = (
    (Pruning(0), None), (Pruning(0.5), Verification()), (Pruning(0), Verification(draft="ngram", draft_tokens=4)),
    (Pruning(0.5), Verification("guarded")), (Pruning(0.5), Verification("lossless")),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    found: Tokenizer = smollm2.tokenizer
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine with random weights and room for long answers."""
    torch.manual_seed(0)
    config = type(CONFIG)(**{**CONFIG.to_dict(), "max_position_embeddings": 1024})
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
    return Engine(model)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer, engine: Engine) -> Iterator[Grammars]:
    found = Grammars(tokenizer, VOCABULARY, engine.eos_token_ids)
    yield found
    found.close()


def of_schema(grammars: Grammars, schema: Any) -> Grammar:
    return asyncio.run(grammars.of_schema(schema, "schema"))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_fit_schemas_of_many_kinds(kind: str, grammars: Grammars, engine: Engine, tokenizer: Tokenizer) -> None:
    """Every mode, with and without drafts. Without a grammar the answers would be noise."""
    # Favour quotes and brackets, so that answers end before the limit.
    closing = [
        tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ('"', '",', '"}', "]", "}", "null")
    ]
    free = Sampling(max_tokens=400, logit_bias=dict.fromkeys(closing, 6.0))
    finished = 0
    for number in range(EACH):
        schema = KINDS[kind](Random(f"{kind} {number}"))
        pruning, verification = WAYS[number % len(WAYS)]
        sampling = replace(free, seed=number, temperature=number % 3 / 2, grammar=of_schema(grammars, schema))
        tokens = list(engine.generate([number + 3, 7, 9], sampling, pruning, verification=verification))
        ids = [token.id for token in tokens if token.complete or token.finish_reason != "stop"]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if tokens[-1].finish_reason == "stop":
            jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
            finished += 1

    assert finished > 0.9 * EACH


@pytest.mark.parametrize("temperature", [0, 1])
def test_forced_text_and_drafts_change_no_answer(
    temperature: float, grammars: Grammars, engine: Engine, tokenizer: Tokenizer
) -> None:
    """Each token is that of single steps, because forced text is spelled as the tokenizer does."""
    for number in range(12):
        grammar = of_schema(grammars, KINDS["records"](Random(number)))
        sampling = Sampling(max_tokens=80, temperature=temperature, seed=number, grammar=grammar, logprobs=1)
        stepped = list(engine.generate([5, 6, 7], sampling))
        for verification in (Verification("fast", "none"), Verification(), Verification("lossless", "ngram")):
            passed = list(engine.generate([5, 6, 7], sampling, verification=verification))

            assert [(token.id, token.logprobs) for token in passed] == [(token.id, token.logprobs) for token in stepped]


def test_forced_text_is_spelled_as_the_tokenizer_does(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Names, quotes and separators are forced in one run of tokens."""
    schema = {"type": "object", "properties": {"first": {"const": "a b"}, "second": {"type": "boolean"}},
              "required": ["first", "second"], "additionalProperties": False}  # fmt: skip
    forced = of_schema(grammars, schema).begin().forced()
    text = '{"first": "a b", "second": true}'

    assert tokenizer.decode(list(forced), skip_special_tokens=False) in text
    assert len(forced) > 8
    assert list(forced) == tokenizer(text, add_special_tokens=False)["input_ids"][: len(forced)]


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


FANS = {f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(40)}
HURTFUL = {
    "deep": ("schema", nested(90)),
    "a million items": ("schema", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "a long text": ("schema", {"type": "string", "minLength": 10**9}),
    "a huge enum": ("schema", {"enum": [f"value-{number}" for number in range(9000)]}),
    "a large multiple": ("schema", {"type": "integer", "multipleOf": 9_999_991}),
    "many optional properties": ("schema", {"properties": {f"p{number}": {} for number in range(3000)}}),
    "references that fan out": ("schema", {"$defs": {**FANS, "a40": {"type": "string"}}, "$ref": "#/$defs/a0"}),
    "a reference to itself": ("schema", {"$ref": "#"}),
    "all of any of": (
        "schema",
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(6)]} for i in range(12)]},
    ),
    "repeated repeats": ("regex", "(((a{1,200}){1,200}){1,200}){1,200}b"),
    "an exponential automaton": ("regex", "(a|b)*a(a|b){3000}"),
    "an intersection": ("lark", "start: A\nA: /(.*a.*){40}/ & /(.*b.*){40}/ & /(.*c.*){40}/"),
    "much memory": (
        "lark",
        "start: " + " ".join(f"r{i}" for i in range(3000))
        + "".join(f'\nr{i}: "a{i}" | r{(i + 1) % 3000} "b"' for i in range(3000)),
    ),
    "ambiguity": ("lark", 'start: s\ns: s s | s s s | "a" | '),
    "brackets": ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", HURTFUL)
def test_hurtful_forms_are_harmless(name: str, grammars: Grammars) -> None:
    """Each is refused soon or followed fast enough, and an ordinary form is compiled right after it."""
    asyncio.run(grammars.of_regex("a", "regex"))
    kind, form = HURTFUL[name]
    before = time.process_time()
    with suppress(InvalidRequest):
        constraint = asyncio.run(getattr(grammars, f"of_{kind}")(form, "form")).begin()
        for _ in range(10):
            if constraint.ended:
                break
            bits, forced = int.from_bytes(constraint.mask(), "little"), constraint.forced()
            constraint.advance(forced[0] if forced else (bits & -bits).bit_length() - 1)
    # The time of this process only; the checker has its own limit of half a second.
    assert time.process_time() - before < 1
    of_schema(grammars, {"type": "object", "title": name})


def test_a_known_form_is_compiled_once(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form is compiled again after KEPT others."""
    compiled: list[str] = []
    make = Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, *form: compiled.append(form[2]) or make(self, *form))
    for regex in ("x", "x", *(f"x{number}" for number in range(KEPT)), "x"):
        asyncio.run(grammars.of_regex(regex, "regex"))

    assert compiled.count("x") == 2


def test_the_latest_used_forms_stay(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use counts, not only the order of compiling."""
    compiled: list[str] = []
    make = Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, *form: compiled.append(form[2]) or make(self, *form))
    for number in range(KEPT):
        for regex in ("often", f"y{number}"):
            asyncio.run(grammars.of_regex(regex, "regex"))

    assert compiled.count("often") == 1


def test_a_crowd_of_forms_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are given up do not change this, so other work finds a thread."""
    counting, now, most, gate = threading.Lock(), 0, 0, threading.Event()

    def compile(*_: object) -> object:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        gate.wait(60)
        with counting:
            now -= 1
        return object()

    monkeypatch.setattr(Grammars, "_compile", compile)
    grammars = Grammars(CharacterTokenizer(), 3, {2})

    async def scenario() -> list[Grammar | BaseException]:
        crowd = [asyncio.ensure_future(grammars.of_regex(f"a{number}", "regex")) for number in range(60)]
        await asyncio.to_thread(wait_until, lambda: now)
        for one in crowd[:20]:
            one.cancel()
        # The first form is still being compiled.
        await asyncio.to_thread(time.sleep, 0)
        assert not any(one.done() for one in crowd[20:])
        gate.set()
        return await asyncio.gather(*crowd, return_exceptions=True)

    ended = asyncio.run(scenario())
    assert most == 1
    assert not any(isinstance(one, BaseException) for one in ended[20:])


def test_a_server_that_closes_does_not_wait_for_a_form() -> None:
    """``close``, on the event loop, does not wait for a form; ``join``, in a thread, does."""
    service = Service(Settings())
    service.models.room.serve(service.models.slots[0], Loaded("scripted", CharacterTokenizer(), [ScriptedEngine([])]))
    [model] = service.models.loaded
    joining = threading.Thread(target=service.join, args=(60,))
    with model.grammars._lock:
        closing = threading.Thread(target=service.close, daemon=True)
        closing.start()
        closing.join(60)
        closed = not closing.is_alive()
        joining.start()
        joining.join(0.1)
        joined = not joining.is_alive()
    joining.join(60)

    assert closed
    assert not joined
    assert not joining.is_alive()


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<tool_call>"])
def test_text_of_a_special_token_is_refused(spelled: str, tokenizer: Tokenizer) -> None:
    """The parser would get stuck at it in the middle of an answer, whether or not it is flagged as special."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<tool_call>"], special_tokens=False)  # type: ignore[attr-defined]  # of the library's
    grammars = Grammars(own, VOCABULARY + 1, [2])
    try:
        for form in (
            grammars.of_regex(f"a{spelled}", "regex"),
            grammars.of_choice(["a", spelled], "choice"),
            grammars.of_schema({"const": spelled}, "schema"),
        ):
            with pytest.raises(InvalidRequest, match=f"contains {re.escape(spelled)}, which is a special token"):
                asyncio.run(form)
    finally:
        grammars.close()


def test_a_checker_that_ended_is_started_anew(grammars: Grammars) -> None:
    """The next form is compiled as before."""
    asyncio.run(grammars.of_regex("q", "regex"))
    grammars.close()

    asyncio.run(grammars.of_regex("qq", "regex"))


def test_a_tokenizer_without_known_bytes_is_refused() -> None:
    """The error is about the model, not about the form."""
    with pytest.raises(InvalidRequest, match=r"schema: not with this model.*fast kind"):
        of_schema(Grammars(CharacterTokenizer(), 0x110001, {0x110000}), {"type": "object"})


class Wrapped(CharacterTokenizer):
    """A tokenizer with a backend of the tokenizers package."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend_tokenizer = backend


def sentencepiece() -> tokenizers.Tokenizer:
    """Like Llama's and Gemma's tokenizers: a sign for spaces, and byte tokens for characters without a piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *'{}":,abcde0123', '{"', '":']
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)}, [("{", '"'), ('"', ":")], byte_fallback=True,
            unk_token="<unk>",
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def test_pieces_with_bytes_for_the_rest() -> None:
    """A character without a piece is spelled in bytes, and the sign stands for a space."""
    backend = sentencepiece()
    grammars = Grammars(Wrapped(backend), backend.get_vocab_size(), {2})
    schema = {"type": "object", "properties": {"aü": {"enum": [1, 2]}}, "required": ["aü"]}
    schema["additionalProperties"] = False
    constraint = of_schema(grammars, schema).begin()
    ids: list[int] = []
    while not constraint.ended:
        forced, bits = constraint.forced(), int.from_bytes(constraint.mask(), "little")
        ids.append(forced[0] if forced else (bits & -bits).bit_length() - 1)
        constraint.advance(ids[-1])
    grammars.close()

    assert json.loads(backend.decode(ids)) in ({"aü": 1}, {"aü": 2})


def test_pieces_without_bytes_are_refused() -> None:
    """The text of such tokens depends on their neighbours."""
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    grammars = Grammars(Wrapped(backend), 3, {0})
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="schema: not with this model"):
            of_schema(grammars, {"type": "object"})
    grammars.close()
