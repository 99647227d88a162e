"""Text and tokens of completions add up: the tokens of logprobs join to the text, and offsets point into it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from griffin import Checkpoint, Engine, Logprobs
from server.loader import Loaded
from server.text.logprobs import LegacyForm, ScoredToken, Vocabulary
from tests.server.client import post, stream
from tests.server.scripted import ScriptedEngine, served

PIECES = ["▁Hello", "▁there", "▁", "▁▁", "Hello", "lo", "!", *"▁abcdeflortHhe "]


@cache
def sentencepiece(prepends: bool = True) -> PreTrainedTokenizerBase:
    """Like Llama 2's: a begin-of-sequence token, a space before each text, bytes for characters without a piece."""
    pieces = list(dict.fromkeys(PIECES))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {piece: 259 + rank for rank, piece in enumerate(pieces)}
    scores = [(piece, 0.0 if id < 259 else -1.0 - 0.1 * (id - 259)) for piece, id in vocabulary.items()]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template="none"
    )
    return found


@dataclass
class Saying(ScriptedEngine):
    """Generates ``ids``, over and over."""

    ids: Sequence[int] = ()
    context_length: int = 1000

    def __post_init__(self) -> None:
        self.text = "".join(map(chr, self.ids))


def serving(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Any:
    """A server that answers with ``ids``."""
    return served(loader=lambda _: Loaded("scripted", tokenizer, [Saying(ids=ids)]))


def ids_of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[int]:
    """The tokens of each text, with none added. The text of a special token gives that token."""
    found: list[int] = []
    for text in texts:
        found += tokenizer.encode(text, add_special_tokens=False)
    return found


def require_sum(text: str, logprobs: dict[str, Any], size: int) -> None:
    """Require that the tokens join to the text, and that offsets and lengths fit."""
    tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
    assert "".join(tokens) == text
    assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]
    assert {len(values) for values in logprobs.values()} == {size}


TOKENIZERS = ["smollm2", "sentencepiece"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, smollm2: Checkpoint) -> PreTrainedTokenizerBase:
    return smollm2.tokenizer if request.param == "smollm2" else sentencepiece()


@pytest.fixture
def said(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """An answer of words and special tokens."""
    end, start = tokenizer.eos_token, tokenizer.bos_token
    return ids_of(tokenizer, "Hello there", end, "Hello", start, end, " there", "!")


def prompts(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Any, int | None]]:
    """Prompts in all forms, each with the number of tokens to keep."""
    start, end = tokenizer.bos_token, tokenizer.eos_token
    for text in ("Hello there", "  Hello", f"{start}Hello there{end} Hello", f"{end}{start}", " "):
        yield text, None
    yield "Hello there", 20
    yield f" Hello{end} there", 2
    ids = ids_of(tokenizer, start, "Hello there", end, "Hello", start, "there!")
    for listed in ([tokenizer.bos_token_id] * 5, ids, ids[2:], ids_of(tokenizer, "Hello there")):
        yield listed, None
    yield ids, -1
    yield ids, 3


@pytest.mark.parametrize("skips", [True, False])
def test_text_and_tokens_add_up(tokenizer: PreTrainedTokenizerBase, said: list[int], skips: bool) -> None:
    """Prompts of every form, and the answers after them, streamed or not."""
    with serving(tokenizer, said) as url:
        for prompt, kept in prompts(tokenizer):
            for echo in (True, False) if kept is None else (True,):
                ask: dict[str, Any] = {
                    "prompt": prompt, "truncate_prompt_tokens": kept, "echo": echo, "logprobs": 1,
                    "max_tokens": len(said), "skip_special_tokens": skips,
                }  # fmt: skip
                answer = post(url, **ask).json()
                (choice,) = answer["choices"]
                chunks = [event["choices"][0] for event in stream(url, **ask)]
                size = len(said) + echo * answer["usage"]["prompt_tokens"]

                require_sum(choice["text"], choice["logprobs"], size)
                assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
                for name, values in choice["logprobs"].items():
                    assert [value for chunk in chunks for value in chunk["logprobs"][name]] == values


def test_special_tokens_of_a_prompt_of_ids_are_in_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """vLLM has the same test: skip_special_tokens is about generated tokens only."""
    ids = [tokenizer.bos_token_id] * 5
    with serving(tokenizer, ids_of(tokenizer, "Hello")) as url:
        for skips in (True, False):
            answer = post(url, prompt=ids, max_tokens=5, echo=True, logprobs=0, skip_special_tokens=skips).json()
            (choice,) = answer["choices"]

            assert re.search("^" + re.escape(tokenizer.decode(ids)), choice["text"])
            assert choice["logprobs"]["tokens"][:5] == [tokenizer.bos_token] * 5


def test_a_text_is_echoed_as_it_came() -> None:
    """The begin-of-sequence token is listed with an empty text, also with a truncation that cuts nothing."""
    tokenizer = sentencepiece()
    with serving(tokenizer, ids_of(tokenizer, "there")) as url:
        for kept in (None, 3, 100, -1):
            ask = {"echo": True, "logprobs": 1, "max_tokens": 0, "truncate_prompt_tokens": kept}
            (choice,) = post(url, prompt="Hello there", **ask).json()["choices"]

            assert choice["text"] == "Hello there"
            assert choice["logprobs"]["tokens"] == ["", "Hello", " there"]
            assert choice["logprobs"]["text_offset"] == [0, 0, 5]
            # The chosen token has the same text in both arrays.
            assert "Hello" in choice["logprobs"]["top_logprobs"][1]
            assert " Hello" not in choice["logprobs"]["top_logprobs"][1]


def test_the_first_word_after_nothing_visible() -> None:
    """The text has no space before the word, so the token has none."""
    tokenizer = sentencepiece()
    with serving(tokenizer, ids_of(tokenizer, "Hello there")) as url:
        (choice,) = post(url, prompt=[1], max_tokens=2, logprobs=0).json()["choices"]

    assert (choice["text"], choice["logprobs"]["tokens"]) == ("Hello there", ["Hello", " there"])


@pytest.mark.parametrize("stop", ["lo t", "there", "o", " ", "Hello there", "e!", "x"])
@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_cut_tokens_too(tokenizer: PreTrainedTokenizerBase, stop: str, include: bool) -> None:
    """A token that is cut off completely is still listed with its log-probability."""
    said = ids_of(tokenizer, "Hello there", " there", "!", "!")
    ask: dict[str, Any] = {"prompt": "Hello", "logprobs": 0, "max_tokens": len(said), "stop": [stop]}
    ask["include_stop_str_in_output"] = include
    with serving(tokenizer, said) as url:
        answer = post(url, **ask).json()
        chunks = [event["choices"][0] for event in stream(url, **ask)]
    (choice,) = answer["choices"]

    require_sum(choice["text"], choice["logprobs"], answer["usage"]["completion_tokens"])
    assert choice["finish_reason"] in ("stop", "length")
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert [token for chunk in chunks for token in chunk["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]


def test_other_special_tokens_are_left_out_too(smollm2: Checkpoint) -> None:
    """Some special tokens are not in the tokenizer's ``all_special_ids``."""
    vocabulary, tokenizer = Vocabulary(smollm2.tokenizer), smollm2.tokenizer
    assert tokenizer.convert_tokens_to_ids("<repo_name>") not in tokenizer.all_special_ids
    with serving(tokenizer, said := ids_of(tokenizer, "Hello", "<repo_name>", " there")) as url:
        (choice,) = post(url, max_tokens=3, logprobs=0).json()["choices"]

    assert (choice["text"], choice["logprobs"]["tokens"]) == ("Hello there", ["Hello", "", " there"])
    assert vocabulary[said[1]].special


def test_an_end_token_is_listed_without_a_text(smollm2: Checkpoint) -> None:
    """It is not part of the text, even if special tokens are shown."""
    end = smollm2.tokenizer.eos_token_id
    form = LegacyForm(Vocabulary(smollm2.tokenizer), hide_special=False)
    listed = form.generated([ScoredToken(end, Logprobs(-0.5), hidden=True)], "", last=True, stopped=False)

    assert listed == {
        "tokens": [""], "token_logprobs": [-0.5], "top_logprobs": [{"<|im_end|>": -0.5}], "text_offset": [0],
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="Hello thr!▁abcé🙂", min_size=1, max_size=12), prepends=st.booleans())
def test_any_text(smollm2: Checkpoint, text: str, prepends: bool) -> None:
    """If every token is whole characters, the tokens join to the text."""
    for tokenizer in (smollm2.tokenizer, sentencepiece(prepends)):
        vocabulary = Vocabulary(tokenizer)
        ids = tokenizer(text)["input_ids"]
        spelled = tokenizer.decode(ids, skip_special_tokens=False)
        for shown in (text.replace("▁", " ") if tokenizer is not smollm2.tokenizer else text, spelled):
            echoed = LegacyForm(vocabulary, hide_special=True).echo([ScoredToken(id, None) for id in ids], shown)

            assert all(0 <= offset <= len(shown) for offset in echoed["text_offset"])
            if all(vocabulary[id].whole for id in ids):
                assert "".join(echoed["tokens"]) == shown


@pytest.mark.parametrize("streaming", [False, True])
def test_a_special_stop_that_is_included_adds_up(streaming: bool, smollm2: Checkpoint) -> None:
    """The text and the token show it, although other special tokens are left out."""
    asked = {
        "prompt": "2+2=", "max_tokens": 4, "temperature": 0, "logprobs": 0, "logit_bias": {"2": 100},
        "stop": "<|im_end|>", "include_stop_str_in_output": True,
    }  # fmt: skip
    with served(Engine(smollm2.model), tokenizer=smollm2.tokenizer) as url:
        if streaming:
            choices = [chunk["choices"][0] for chunk in stream(url, **asked) if chunk["choices"]]
        else:
            choices = post(url, **asked).json()["choices"]

    assert "".join(choice["text"] for choice in choices) == "<|im_end|>"
    assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == ["<|im_end|>"]
