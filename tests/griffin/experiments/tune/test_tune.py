"""A user's own prompts: the measured cost of a sparsity is right, and the recommendation follows from it."""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BatchEncoding,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from griffin import Engine, Preparation, Pruning, Token
from griffin.errors import GriffinError
from griffin.experiments.common import pictures
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.tune import command as tune
from griffin.experiments.tune.advice import Advice, Cell, advise, sentences
from griffin.experiments.tune.losses import Loss, loss, losses, teacher_forced
from griffin.experiments.tune.measurement import by_length, left_out, require_fit
from griffin.experiments.tune.prompts import Case, Entry, encode, read_entries
from griffin.experiments.tune.speedup import Speed, measure_speeds, speed
from griffin.method.auto import LossTable
from griffin.model.loading import Checkpoint, load
from griffin.neurons import Kept
from griffin.request import DEFAULT_METHOD, Auto
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, word_tokenizer
from tests.tiny import COMMON, CONFIGS, tiny_model

LONG = "The tide rose over the sand bars while the keeper lit the lamp and wrote down the hour in his book."
SHORT = "Tell me about the sea."
WIDE = {"vocab_size": 49152, "max_position_embeddings": 512}


def read(tmp_path: Path, name: str, content: str) -> list[Entry]:
    (tmp_path / name).write_text(content)
    return read_entries(tmp_path / name)


def test_json_lines(tmp_path: Path) -> None:
    """Texts and conversations, with a completion or without. An assistant's last message is a completion."""
    user = {"role": "user", "content": "hi"}
    records = [
        {"prompt": "a", "id": 7},
        {"prompt": "b\n", "completion": " c"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [user, {"role": "assistant", "content": "yes"}]},
    ]
    found = read(tmp_path, "p.jsonl", "\ufeff" + "\n\n".join(json.dumps(record) for record in records) + "\n")
    line = f"'{tmp_path / 'p.jsonl'}', line "

    assert found == [
        Entry(line + "1", "a"), Entry(line + "3", "b\n", " c"), Entry(line + "5", [user]),
        Entry(line + "7", [user], "yes"),
    ]  # fmt: skip


def test_plain_text(tmp_path: Path) -> None:
    """One prompt for each line; or, if a line is just ---, one between two such lines."""
    assert [entry.prompt for entry in read(tmp_path, "p.txt", "one\n\n two --- \n")] == ["one", " two --- "]
    found = read(tmp_path, "q.txt", "---\none\n\nstill one\n---\n\n---\ntwo\n")

    assert [entry.prompt for entry in found] == ["one\n\nstill one", "two"]
    assert [entry.where.rpartition(" ")[2] for entry in found] == ["2", "8"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", "", "holds no prompts"),
        ("p.txt", "\n---\n\n", "holds no prompts"),
        ("p.csv", "a", "ends neither in .jsonl nor in .txt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2: no JSON object"),
        ("p.jsonl", '["a"]', "line 1: no JSON object"),
        ("p.jsonl", '{"text": "a"}', "line 1: the object has neither 'prompt' nor 'messages'"),
        ("p.jsonl", '{"prompt": "a", "messages": []}', "line 1: the object has both"),
        ("p.jsonl", '{"prompt": 3}', "line 1: the field 'prompt' is not a text"),
        ("p.jsonl", '{"prompt": "a", "completion": 3}', "line 1: the field 'completion' is not a text"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "line 1: the field 'prompt' holds half a character"),
        ("p.jsonl", '{"messages": []}', "line 1: 'messages' is no list such as"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "line 1, message 1: the field 'content' is missing"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "nothing that it answers"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, content: str, said: str) -> None:
    """One line: the file, the line if there is one, and what is wrong."""
    with pytest.raises(GriffinError) as error:
        read(tmp_path, name, content)
    (line,) = str(error.value).splitlines()

    assert said in line
    assert f"'{tmp_path / name}'" in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, and a file that is no text."""
    with pytest.raises(GriffinError, match=r"--prompts: '.*nowhere\.jsonl' does not exist"):
        read_entries(tmp_path / "nowhere.jsonl")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GriffinError, match="--prompts: cannot read"):
        read_entries(tmp_path / "p.txt")


def test_prompts_become_ids(smollm2: Checkpoint) -> None:
    """A text as it is, a conversation by the chat template with the answer opened, both with their completion."""
    tokenizer = smollm2.tokenizer
    text = encode(Entry("line 1", SHORT, " It is wide."), tokenizer)
    chat = encode(Entry("line 2", [{"role": "user", "content": SHORT}]), tokenizer)

    assert tokenizer.decode(text.ids) == SHORT
    assert tokenizer.decode(text.completion) == " It is wide."
    assert tokenizer.decode(chat.ids).endswith(f"<|im_start|>user\n{SHORT}<|im_end|>\n<|im_start|>assistant\n")
    assert chat.completion == ()


class Tokenizer:
    """One token for each character. If it has a template, the template refuses all messages."""

    bos_token_id = None

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool = True) -> BatchEncoding:
        return BatchEncoding({"input_ids": [ord(character) for character in text]})

    def apply_chat_template(self, messages: object, **options: object) -> str:
        from jinja2 import TemplateError

        raise TemplateError("roles must alternate\nsomewhere")


@pytest.mark.parametrize(
    ("entry", "template", "said"),
    [
        (Entry("line 3", ""), None, "line 3: the prompt has no tokens"),
        (Entry("line 3", "a", "b"), None, "line 3: the completion has 1 tokens"),
        (Entry("line 3", [{"role": "user", "content": "a"}]), None, "line 3: this model has no chat template"),
        (Entry("line 3", [{"role": "user", "content": "a"}]), "{{ x }}", "refuses the messages: roles must alternate"),
    ],
)
def test_prompts_that_no_model_can_read(entry: Entry, template: str | None, said: str) -> None:
    """One line names the prompt's place."""
    tokenizer: Any = Tokenizer(template)
    with pytest.raises(GriffinError) as error:
        encode(entry, tokenizer)
    (line,) = str(error.value).splitlines()

    assert said in line


def test_cutting_a_prompt() -> None:
    """The last tokens stay. Shorter prompts are left out, and equal ones count once, wherever they were."""
    cases = [Case((1, 2, 3), where="a"), Case((9, 2, 3), where="b"), Case((7,)), Case((2, 3), (5, 5))]
    found = by_length(cases, [2, 4, None])

    assert found == {2: [Case((2, 3)), Case((2, 3), (5, 5))], None: cases}


def test_a_cut_prompt_begins_as_the_server_would_send_it() -> None:
    """The BOS token stays first and counts as a token. Some tokenizers put none."""
    entry = Entry("line 1", "w10 w11 w12", " w20 w21")
    case, without = encode(entry, word_tokenizer()), encode(entry, word_tokenizer(bos=False))
    cut, all_of_it, alone = case.last(3), case.last(4), case.last(1)

    assert case.ids == (BOS, 10, 11, 12)
    assert cut == Case((BOS, 11, 12), (20, 21))
    assert all_of_it == case.last(None) == case
    assert alone == Case((BOS,), (20, 21))
    assert case.last(5) is None
    assert (without.ids, without.last(2)) == ((10, 11, 12), Case((11, 12), (20, 21)))
    assert cut is not None
    assert cut.last(2) == Case((BOS, 12), (20, 21))


@pytest.mark.parametrize(("template", "ids"), [("<s> {{ messages[0].content }}", (BOS, 12)), ("w9 w10", (10,))])
def test_a_cut_conversation(template: str, ids: tuple[int, ...]) -> None:
    """If the template writes a BOS token, it stays; otherwise there is none."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    case = encode(Entry("line 1", [{"role": "user", "content": "w10 w11 w12"}]), tokenizer)

    assert case.last(len(ids)) == Case(ids)


def test_a_loss_by_hand() -> None:
    """A vocabulary of two: one token is predicted worse, one equally well, with logits shifted by a constant."""
    full_CV = torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log()
    pruned_CV = torch.tensor([[0.3, 0.7], [0.2, 0.8]]).log() + 5.0
    found = loss(full_CV, pruned_CV, [0, 1])

    assert (found.tokens, found.agreed) == (2, 1)
    assert found.excess == pytest.approx(math.log(0.6 / 0.3), abs=1e-5)
    assert found.divergence == pytest.approx(0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7), abs=1e-5)


@pytest.mark.parametrize("sparsity", [0.25, 0.75])
def test_losses_are_those_of_a_masked_model(sparsity: float) -> None:
    """In plain torch: neurons by equation 1 on the prompt, the rest masked. The first token does not count."""
    model = tiny_model("llama")
    prompt, rest = list(range(3, 23)), [40, 41, 5, 90, 17, 33, 8]
    cache, whole = DynamicCache(config=model.config), torch.tensor([prompt + rest])
    with torch.no_grad():
        full_TV = model(whole).logits[0, len(prompt) : -1]
        with oracle.recorded(model) as z:
            model(torch.tensor([prompt]), past_key_values=cache)
        kept = [oracle.statistic(z_TF).topk(round((1 - sparsity) * 52)).indices for z_TF in z]
        with oracle.masked(model, Kept(kept)):
            pruned_TV = model(torch.tensor([rest[:-1]]), past_key_values=cache).logits[0]
    targets_T = torch.tensor(rest[1:])
    nll = [functional.cross_entropy(logits_TV, targets_T, reduction="sum") for logits_TV in (full_TV, pruned_TV)]
    divergence = functional.kl_div(pruned_TV.log_softmax(-1), full_TV.softmax(-1), reduction="sum")

    (found,) = teacher_forced(Teacher(model, chunk=4), prompt, rest, [Pruning(sparsity)])

    assert found.tokens == 6
    assert found.excess == pytest.approx(float(nll[1] - nll[0]), abs=1e-3)
    assert found.divergence == pytest.approx(float(divergence), abs=1e-3)
    assert found.agreed == int((full_TV.argmax(-1) == pruned_TV.argmax(-1)).sum())
    assert abs(found.excess) > 0.1


class Untouched:
    """An object that must not be used."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was asked for")


def tiny_study(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Study:
    return Study(Checkpoint("tiny", tiny_model("llama"), tokenizer), None, folder)


def test_a_stopped_run_goes_on(tmp_path: Path, smollm2: Checkpoint) -> None:
    """A new process computes no known answer again. With more sparsities, it computes only the new ones."""
    case = Case(tuple(range(3, 20)))
    first = losses(tiny_study(tmp_path, smollm2.tokenizer), case, [0.25, 0.5], 6, 1.0, DEFAULT_METHOD)
    again = tiny_study(tmp_path, smollm2.tokenizer)
    again.__dict__.update(engine=Untouched(), teacher=Untouched())
    assert losses(again, case, [0.25, 0.5], 6, 1.0, DEFAULT_METHOD) == first

    more = tiny_study(tmp_path, smollm2.tokenizer)
    chosen: list[float] = []
    choose = more.teacher.choose
    more.teacher.choose = lambda pruning: (chosen.append(pruning.sparsity), choose(pruning))[1]  # type: ignore[method-assign]
    found = losses(more, case, [0.25, 0.5, 0.75], 6, 1.0, DEFAULT_METHOD)

    assert chosen == [0.75]
    assert {s: found[s] for s in first} == first
    assert set(first) == {0.25, 0.5}


def test_what_an_answer_depends_on(tmp_path: Path, smollm2: Checkpoint) -> None:
    """On the prompt and where it ends, the length, the temperature and the completion."""
    study, ids = tiny_study(tmp_path, smollm2.tokenizer), tuple(range(3, 20))
    settings = [
        (Case(ids), 6, 1.0), (Case(ids[1:]), 6, 1.0), (Case(ids), 5, 1.0), (Case(ids), 6, 0.0),
        (Case(ids, (50, 51, 52)), 6, 1.0), (Case((*ids, 50), (51, 52)), 6, 1.0),
    ]  # fmt: skip
    found = [
        losses(study, case, [0.5], tokens, temperature, DEFAULT_METHOD)[0.5] for case, tokens, temperature in settings
    ]

    assert len({one.excess for one in found}) == len(settings)
    assert [one.tokens for one in found[-2:]] == [2, 1]


def test_an_answer_of_a_single_token_has_nothing_to_judge(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The full model may end at once."""
    study = tiny_study(tmp_path, smollm2.tokenizer)
    study.engine.eos_token_ids = frozenset(range(128))

    assert losses(study, Case((5, 6, 7)), [0.5], 6, 1.0, DEFAULT_METHOD) == {}


SPEED = Speed(100.0, 1.3, 1.2, 1.4)


def test_means_and_their_standard_error() -> None:
    """Means are over tokens. For equally long prompts, the error is the standard deviation over sqrt(n)."""
    whole = Cell.of(None, 0.5, [Loss(2, 0.2, 0.4, 1), Loss(4, 1.0, 0.8, 4)], SPEED)
    even = Cell.of(None, 0.5, [Loss(10, excess, 0.0, 10) for excess in (1.0, 2.0, 3.0)], SPEED)
    single = Cell.of(None, 0.5, [Loss(4, 1.0, 0.8, 4)], SPEED)

    assert (whole.prompts, whole.excess, whole.divergence) == (2, pytest.approx(0.2), pytest.approx(0.2))
    assert whole.agreement == pytest.approx(5 / 6)
    # Each prompt's sum is 0.2 from the mean's: sqrt(2 * (0.04 + 0.04)) over 6 tokens.
    assert whole.error == pytest.approx(0.4 / 6)
    assert even.error == pytest.approx(0.1 / math.sqrt(3))
    assert whole.increase == pytest.approx(math.exp(0.2) - 1)
    assert whole.spread == (pytest.approx(math.exp(0.2 - 0.8 / 6) - 1), pytest.approx(math.exp(0.2 + 0.8 / 6) - 1))
    assert single.error is None
    assert single.spread[0] == -1
    assert single.spread[1] > 1e300


def cell(
    length: int | None, sparsity: float, percent: float, error: float = 0.005, prompts: int = 20, speedup: float = 1.3
) -> Cell:
    """``percent``: increase of perplexity. ``error``: standard error of its logarithm."""
    excess = math.log(1 + percent / 100)
    return Cell(length, sparsity, prompts, excess, error, 0.1, 0.9, Speed(100.0, speedup, speedup, speedup))


def advised(*cells: Cell, tolerance: float = 0.05) -> tuple[Advice, str]:
    advice = advise(cells, tolerance)
    return advice, "\n".join(sentences(advice, tolerance, 64))


def test_the_largest_sparsity_within_the_tolerance() -> None:
    """For all prompts, with how to apply it."""
    advice, said = advised(cell(None, 0.25, 1), cell(None, 0.5, 3), cell(None, 0.75, 30))

    assert [(step.prompt_tokens, step.sparsity) for step in advice.steps] == [(None, 0.5)]
    assert "Recommended for all these prompts: sparsity 0.5, perplexity +3.0 % (2.0 to 4.0) on 20 prompts" in said
    assert "1.30 times as fast" in said
    assert 'flag --sparsity 0.5, or "sparsity": 0.5 in a request.' in said


def test_only_longer_prompts_allow_one() -> None:
    """The recommendation begins at the length from which all longer prompts allow it."""
    advice, said = advised(
        cell(64, 0.25, 2), cell(128, 0.25, 9), cell(256, 0.25, 3), cell(512, 0.25, 2), cell(None, 0.25, 12)
    )

    assert [(step.prompt_tokens, step.sparsity) for step in advice.steps] == [(256, 0.25)]
    assert "Recommended for prompts of 256 tokens and more" in said
    assert 'apply it: "sparsity": 0.25 in requests of 256 tokens and more.' in said
    assert "--sparsity" not in said


def test_longer_prompts_allow_more() -> None:
    """In addition to what all prompts allow, which is not repeated for long ones."""
    advice, said = advised(
        cell(64, 0.25, 6), cell(64, 0.5, 20), cell(256, 0.25, 1), cell(256, 0.5, 2), cell(None, 0.25, 2),
        cell(None, 0.5, 11),
    )  # fmt: skip

    assert [(step.prompt_tokens, step.sparsity) for step in advice.steps] == [(None, 0.25), (256, 0.5)]
    assert '"sparsity": 0.25 in a request, 0.5 from 256 tokens on.' in said


def test_without_whole_prompts_the_shortest_are_the_widest() -> None:
    """If whole prompts were not measured, the shortest length is the widest."""
    advice, said = advised(cell(64, 0.25, 2), cell(256, 0.25, 1))

    assert [(step.prompt_tokens, step.sparsity) for step in advice.steps] == [(64, 0.25)]
    assert "for prompts of 64 tokens and more" in said


def test_none_is_within_the_tolerance() -> None:
    """The advice is dense, and says how near the best came."""
    advice, said = advised(cell(64, 0.25, 9), cell(None, 0.25, 12), cell(None, 0.5, 40), cell(64, 0.5, 40))

    assert (advice.steps, advice.unsure) == ((), None)
    assert said.startswith("Serve this model dense on these prompts: nothing stays within 5 % of perplexity.")
    assert "sparsity 0.25, perplexity +9.0 %" in said
    assert "cut to their last 64 tokens" in said
    assert "apply" not in said


def test_a_mean_that_one_prompt_could_move() -> None:
    """A mean is not recommended if its spread exceeds the tolerance; a smaller, sure one is."""
    advice, said = advised(cell(None, 0.25, 1), cell(None, 0.5, 4, error=0.02))
    assert [step.sparsity for step in advice.steps] == [0.25]
    assert advice.unsure is not None
    assert "cannot tell whether a tolerance of 5 % allows sparsity 0.5, perplexity +4.0 %" in said

    advice, said = advised(cell(None, 0.25, 4, error=0.02))
    assert advice.steps == ()
    assert "cannot tell" in said
    assert "dense" not in said


def test_too_few_prompts() -> None:
    """Seven are too few, however similar. Lengths with so few do not count if others have more."""
    advice, said = advised(cell(None, 0.25, 1, prompts=7), cell(None, 0.5, 40, prompts=7))
    assert not advice.enough
    assert "Too few prompts for a recommendation: at least 8 must be judged, but only 7 could be." in said
    assert "within the tolerance of 5 %: sparsity 0.25, perplexity +1.0 %" in said
    assert "apply" not in said

    advice, said = advised(cell(None, 0.25, 1, prompts=4), cell(None, 0.5, 3, error=0.08, prompts=4))
    assert (advice.steps, advice.hint and advice.hint.sparsity) == ((), 0.25)
    assert "within the tolerance of 5 %: sparsity 0.25" in said
    assert "cannot tell whether a tolerance of 5 % allows sparsity 0.5, perplexity +3.0 %" in said

    advice, said = advised(cell(None, 0.5, 3, error=0.08, prompts=4))
    assert advice.hint is None
    assert "As far as they go" not in said
    assert "cannot tell whether a tolerance of 5 % allows sparsity 0.5" in said

    _, said = advised(cell(None, 0.5, 24, error=0.02, prompts=4))
    assert "As far as they go, nothing stays within 5 % of perplexity. The best was sparsity 0.5" in said

    advice, _ = advised(cell(256, 0.5, 1, prompts=7), cell(None, 0.5, 9), cell(64, 0.5, 2))
    assert [(step.prompt_tokens, step.sparsity) for step in advice.steps] == [(64, 0.5)]


def test_prompts_that_could_not_be_judged() -> None:
    """How many, why, and what to do about chat prompts that were given as texts."""
    texts = [Case((number,), bare=True) for number in range(8)]
    chats = [Case((number,)) for number in range(8)]

    assert left_out(texts, []) == []
    assert left_out(texts, texts[:4]) == [
        "4 of 8 prompts could not be judged: the full model answers 4 with a single token, the end; "
        "chat prompts need .jsonl with messages."
    ]
    assert left_out(chats, chats[:1]) == [
        "1 of 8 prompts could not be judged: the full model answers 1 with a single token, the end."
    ]
    assert left_out([*texts, texts[0]], []) == ["1 of 9 prompts could not be judged: 1 repeats another."]


def test_a_speed_up_that_does_not_pay() -> None:
    """Below 5 % faster, a sparsity is possible but not recommended."""
    _, said = advised(cell(None, 0.25, 1, speedup=1.04))
    assert "Possible for all these prompts, but it does not pay: sparsity 0.25" in said
    assert said.endswith("Serve this model dense on these prompts and this machine.")
    assert "apply" not in said

    _, said = advised(cell(None, 0.25, 1, speedup=1.04), cell(None, 0.5, 9), cell(256, 0.25, 1), cell(256, 0.5, 2))
    assert 'To apply it: "sparsity": 0.5 in requests of 256 tokens and more.' in said


def test_speeds_by_hand() -> None:
    """Nine tokens after the first, in medians over the rounds, with the lowest and highest ratio of a round."""
    found = speed([1.0, 3.0, 2.0], [3.0, 3.0, 4.0], 10)

    assert (found.tokens_per_second, found.speedup) == (4.5, 1.5)
    assert (found.speedup_lowest, found.speedup_highest) == (1.0, 3.0)


def test_speeds_of_an_engine() -> None:
    """The full model and each sparsity in turn, prompt by prompt. The first round does not count."""
    engine, read = Engine(tiny_model("llama")), []
    generate = engine.generate

    def slow_at_first(ids: list[int], *rest: Any) -> Iterator[Token]:
        read.append(len(ids))
        for token in generate(ids, *rest):
            time.sleep(0.6 if len(read) <= 2 else 0)
            yield token

    engine.generate = slow_at_first  # type: ignore[method-assign]
    with Progress(4) as progress:
        found = measure_speeds(engine, [range(3, 10), range(3, 20)], [0.5], 4, 1, progress, DEFAULT_METHOD)

    assert list(found) == [0.0, 0.5]
    assert found[0.0].speedup == 1.0
    # If a round with three pauses of 0.6 s counted, the median of two could not be above 3.4 on any machine.
    assert min(one.tokens_per_second for one in found.values()) > 4
    assert read == [7, 7, 17, 17]


def command(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    tune.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt-lengths", "0"], "--prompt-lengths: '0' is not a whole number of at least 1"),
        (["--prompt-lengths", "most"], "--prompt-lengths: 'most' is not"),
        (["--temperature", "-1"], "--temperature: '-1' is not a number of 0 or more"),
        (["--temperature", "hot"], "--temperature: 'hot' is not"),
        (["--tokens", "1"], "--tokens: '1' is not a whole number of at least 2"),
        (["--tolerance", "0"], "--tolerance: '0' is not above 0"),
        (["--sparsities", "1"], "--sparsities: '1' is not"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], said: str) -> None:
    """The error names the flag."""
    with pytest.raises(argparse.ArgumentError) as error:
        command("--prompts", "p.txt", *flags)

    assert said in str(error.value)


def test_the_full_model_alone_is_nothing_to_compare(tmp_path: Path) -> None:
    """The error comes before a model is loaded."""
    with pytest.raises(ValueError, match="--sparsities: 0 is the full model"):
        tune.run(command("--prompts", str(tmp_path / "p.txt"), "--sparsities", "0"))


def wide_model() -> PreTrainedModel:
    """A tiny model with SmolLM2's vocabulary and a longer context."""
    config = AutoConfig.for_model("llama", **{**COMMON, **CONFIGS["llama"], **WIDE})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
    return model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, smollm2: Checkpoint) -> Path:
    """A directory as on a hub, with a model of SmolLM2's vocabulary that runs in milliseconds."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    wide_model().save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return folder


def started(model_folder: Path, prompts: Path, *flags: str, quick: bool = True) -> dict[str, Any]:
    """Run the command as a user would, and return what it wrote."""
    out = prompts.parent / "results"
    tune.run(command("--prompts", str(prompts), "--model", str(model_folder), "--dtype", "float32", "--device", "cpu",
                     "--out", str(out), *(["--quick"] if quick else []), *flags))  # fmt: skip
    found: dict[str, Any] = json.loads((out / "tiny-llama" / "tune.json").read_text())
    return found


def test_what_it_keeps_for_sparsity_auto(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is loaded with this table from then on. Predicted losses have the size of the measured ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prompts = tmp_path / "p.txt"
    prompts.write_text(
        "\n".join(f"{number} sheep and {number * 7} goats {'went up the hill ' * number}" for number in range(1, 11))
    )
    flags = ("--prompt-lengths", "all", "--sparsities", "0.25", "0.5", "--tokens", "12")
    found = started(model_folder, prompts, *flags, quick=False)

    loaded = load(str(model_folder), dtype="float32", device="cpu")

    assert "Kept for sparsity auto, with method griffin+: losses of 10 prompts" in capsys.readouterr().out
    losses_now = Preparation.read(loaded.model).losses
    assert list(losses_now) == [LossTable(**found["auto"])]
    by_sparsity = {row["sparsity"]: row["kl"] for row in found["rows"]}
    engine = Engine(loaded.model, losses=losses_now)
    with engine.read(range(3, 60), Pruning(auto=Auto(10.0, 12), method=DEFAULT_METHOD)) as read:
        assert read.outlook is not None
        assert read.outlook.sparsity == 0.5
        assert 0.2 < read.outlook.divergence / by_sparsity[0.5] < 5


def test_cache_dir_is_the_servers(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table for sparsity auto is where a server with the same flag looks for it, and nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    prompts, cache_dir = tmp_path / "p.txt", tmp_path / "cache"
    prompts.write_text("\n".join(f"{number} sheep and {number * 7} goats went up" for number in range(1, 9)))
    flags = ("--prompt-lengths", "all", "--sparsities", "0.5", "--tokens", "8", "--cache-dir", str(cache_dir))
    started(model_folder, prompts, *flags, quick=False)

    model = load(str(model_folder), dtype="float32", device="cpu").model
    assert [table.method for table in Preparation.read(model, cache_dir).losses] == [DEFAULT_METHOD]
    assert not Preparation.read(model).losses


def test_the_whole_command(
    model_folder: Path, tmp_path: Path, smollm2: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file and figure is there, and a completion's loss is that of the decode path."""
    prompts = tmp_path / "p.jsonl"
    records = [{"prompt": LONG, "completion": " He slept."}, {"prompt": SHORT}, {"prompt": SHORT}]
    prompts.write_text("\n".join(map(json.dumps, records)))
    found = started(model_folder, prompts, "--prompt-lengths", "all", "20", "400", "--sparsities", "0", "0.5", "0.5")
    printed = capsys.readouterr().out
    rows = {(row["prompt_tokens"], row["sparsity"]): row for row in found["rows"]}
    row, full = rows[20, 0.5], rows[20, 0.0]
    ids, rest = (smollm2.tokenizer(text).input_ids for text in (LONG, " He slept."))
    engine = Engine(wide_model())
    dense, sparse = (engine.score(ids[-20:], rest, Pruning(s, method=DEFAULT_METHOD))[1:].mean() for s in (0.0, 0.5))

    assert list(rows) == [(20, 0.0), (20, 0.5), (None, 0.0), (None, 0.5)]
    assert row["perplexity_percent"] == pytest.approx((math.exp(dense - sparse) - 1) * 100, rel=1e-3)
    assert (row["prompts"], rows[None, 0.5]["prompts"], found["prompts"]) == (1, 2, 3)
    assert (full["perplexity_percent"], full["kl"], full["agreement"], full["speedup"]) == (0, 0, 1, 1)
    # Half of 52 neurons, with 32 numbers in each of three projections, in three layers; biases stay.
    assert full["active_parameters"] - row["active_parameters"] == 3 * 26 * 3 * 32
    assert min(row["tokens_per_second"], row["kl"]) > 0
    assert (found["completions"], found["data"], found["tokens"]) == (1, "p.jsonl", 16)
    assert found["recommended"] == []
    assert "3 prompts of 6 to" in printed
    assert "1 of 3 prompts could not be judged: 1 repeats another." in printed
    assert "at least 8 must be judged, but only 2 could be." in printed
    assert "last 20" in printed
    assert "last 400" not in printed
    picture = tmp_path / "results" / "tiny-llama" / "tune.svg"
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert "tolerance 5 %" in picture.read_text()


def test_without_matplotlib(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plain installation measures and recommends. Instead of a picture it says what to install."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join((LONG, SHORT)))
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    found = started(model_folder, prompts, "--prompt-lengths", "all")

    assert found["rows"]
    assert not list((tmp_path / "results").rglob("*.svg"))
    assert "no picture was drawn: pictures need matplotlib, of the extra 'experiments'" in capsys.readouterr().out


def test_the_whole_command_again(model_folder: Path, tmp_path: Path) -> None:
    """A second run takes everything but the speed from the ledger, and finds the same."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(f"{SHORT} {number}" for number in range(9)))
    first = started(model_folder, prompts, "--prompt-lengths", "all")
    ledger = tmp_path / "results" / "tiny-llama" / "ledger.jsonl"
    written = ledger.read_text()
    second = started(model_folder, prompts, "--prompt-lengths", "all")

    assert len(written.splitlines()) == 9 * (1 + 3)
    assert ledger.read_text() == written
    assert [row["kl"] for row in second["rows"]] == [row["kl"] for row in first["rows"]]


def test_ids_that_the_model_does_not_have(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The error names the prompt's line. A completion may be longer than the context."""
    study = tiny_study(tmp_path, smollm2.tokenizer)
    require_fit(study, [Case((5, 6), (7,) * 300)], [None], 16)
    with pytest.raises(GriffinError, match="line 4: token id 128 is out of range"):
        require_fit(study, [Case((5, 6)), Case((5, 128), where="line 4")], [None], 16)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--tokens", "500", "--prompt-lengths", "all"],
            "line 2: the prompt has {longest} tokens, which with --tokens 500 exceeds this model's context of 512; ",
        ),
        (["--prompt-lengths", "500"], "--prompt-lengths: 500 and --tokens 16 do not fit into this model's context"),
        (["--prompt-lengths", "30"], "--prompt-lengths: the longest prompt has {longest} tokens; take shorter lengths"),
    ],
)
def test_what_does_not_fit(
    model_folder: Path, tmp_path: Path, smollm2: Checkpoint, flags: list[str], said: str
) -> None:
    """One line names the flag or the prompt's line, before anything is measured."""
    (tmp_path / "p.txt").write_text(f"{SHORT}\n{LONG}\n")
    with pytest.raises((GriffinError, ValueError)) as error:
        started(model_folder, tmp_path / "p.txt", *flags)

    assert said.format(longest=len(smollm2.tokenizer(LONG).input_ids)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
