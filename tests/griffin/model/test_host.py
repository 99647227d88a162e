"""A model whose FF weights are on the host or in a mapped file answers as the resident model does."""

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from griffin import Engine, Pruning, Sampling, Scoring
from griffin.decode.twin import DecodeTwin
from griffin.engine.prefixes import PrefixStore
from griffin.errors import LoadError, OutOfMemory
from griffin.model import host as offload
from griffin.model import mapped
from griffin.model.checkpoint import gguf
from griffin.model.checkpoint.mapped import mapped_model
from griffin.model.families import feed_forwards
from griffin.model.host import HostWeights, Mark, offload_
from griffin.model.loading import load
from griffin.neurons import Kept
from tests.griffin.experiments.words import word_tokenizer
from tests.tiny import COMMON_BLOCK, CONFIGS, tiny_model

Prompts = Callable[[int, int], list[int]]
CPU = torch.device("cpu")
# Requests in turn on one engine: seed, prompt length, sparsity.
REQUESTS = ((1, 20, 0.5), (2, 9, 0.0), (3, 12, 0.8))


def sampling(tokens: int, seed: int | None = None) -> Sampling:
    return Sampling(temperature=0 if seed is None else 1, seed=seed, max_tokens=tokens, ignore_eos=True, logprobs=0)


def answers(engine: Engine, prompts: Prompts, seed: int | None = None) -> list[list[tuple[int, float]]]:
    """Tokens and their log-probabilities for all requests in turn."""
    return [
        [
            (token.id, token.logprobs.chosen)
            for token in engine.generate(prompts(which, length), sampling(6, seed), Pruning(sparsity))
        ]
        for which, length, sparsity in REQUESTS
    ]


def assert_same(ours: list[list[tuple[int, float]]], theirs: list[list[tuple[int, float]]]) -> None:
    assert [[id for id, _ in answer] for answer in ours] == [[id for id, _ in answer] for answer in theirs]
    flat = [torch.tensor([score for answer in side for _, score in answer]) for side in (ours, theirs)]
    torch.testing.assert_close(*flat, atol=1e-5, rtol=0)


def reference(model: PreTrainedModel) -> Engine:
    """An engine on the resident model, which decodes with transformers' own forward pass."""
    return Engine(model, prefill_chunk=7, step="twin")


def offloaded(model: PreTrainedModel, *, staged: bool) -> PreTrainedModel:
    model = copy.deepcopy(model)
    offload_(model, CPU, staged=staged)
    return model


@pytest.mark.parametrize("staged", [True, False])
def test_offloaded_equals_resident(model: PreTrainedModel, staged: bool, prompts: Prompts) -> None:
    """Requests with several sparsities in turn, also dense ones, greedy and by seed; prompts in chunks."""
    step = "lean" if staged and model.config.model_type in COMMON_BLOCK else "auto"
    ours, resident = Engine(offloaded(model, staged=staged), prefill_chunk=7, step=step), reference(model)

    for seed in (None, 5):
        assert_same(answers(ours, prompts, seed), answers(resident, prompts, seed))


def test_offloaded_decoding_is_lean_decoding_bit_for_bit(prompts: Prompts) -> None:
    """The same step on the same kept rows gives the same bits."""
    model = tiny_model("llama")
    ours, resident = Engine(offloaded(model, staged=True), step="lean"), Engine(model, step="lean")
    prompt = prompts(7, 20)

    assert (
        list(ours.generate(prompt, sampling(12), Pruning(0.5)))[2:]
        == list(resident.generate(prompt, sampling(12), Pruning(0.5)))[2:]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"], indirect=False)
def test_scores_are_the_same(family: str, prompts: Prompts) -> None:
    """The full model scores a text, and kept neurons score its end."""
    model, text = tiny_model(family), prompts(8, 30)
    ours, resident = Engine(offloaded(model, staged=True), prefill_chunk=7), reference(model)
    for pruning, scoring in ((Pruning(), Scoring(2)), (Pruning(0.5), Scoring(2)), (Pruning(0.5), Scoring(0, 12, 12))):
        with ours.read(text, pruning, scoring) as mine, resident.read(text, pruning, scoring) as theirs:
            pairs = [(a, b) for a, b in zip(mine.scores, theirs.scores, strict=True) if b is not None]

            assert pairs
            assert all(abs(a.chosen - b.chosen) < 1e-5 for a, b in pairs)


@pytest.mark.parametrize("statistic", ["flocking", "magnitude"])
def test_the_same_neurons_are_chosen(statistic: str, prompts: Prompts) -> None:
    """Also by weight magnitude, with weights that are not on the device, and with a reused prefix."""
    model = tiny_model("qwen2")
    store = PrefixStore(2**20, 8)
    ours = Engine(offloaded(model, staged=True), prefill_chunk=8, prefixes=store)
    sets = []
    for engine in (ours, ours, Engine(model, prefill_chunk=8, step="twin")):
        tokens = list(engine.generate(prompts(9, 30), sampling(3), Pruning(0.5, statistic=statistic)))
        sets.append(tokens[1].selection.expert_set)

    assert len(set(sets)) == 1
    assert len(store) == 3


def test_engines_at_the_same_time(prompts: Prompts) -> None:
    """Two threads, each with an engine and its own places for layers, share one model's weights on the host."""
    model = tiny_model("llama")
    shared = offloaded(model, staged=True)
    engines, expected = [Engine(shared, step="lean") for _ in range(2)], answers(reference(model), prompts)
    found: dict[int, list[list[list[tuple[int, float]]]]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(5):
            found[number].append(answers(engines[number], prompts))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found[0]) == len(found[1]) == 5
    for answer in (*found[0], *found[1]):
        assert_same(answer, expected)


def test_a_layer_is_copied_while_the_one_before_computes(monkeypatch: pytest.MonkeyPatch, prompts: Prompts) -> None:
    """A place is filled again only after its layer has run, and used only once it is full."""
    marks: dict[int, str] = {}
    log: list[tuple[str, str]] = []

    class Spy(Mark):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            # Marks are made in this order: filled and free for each place.
            marks[id(self)] = ("filled 0", "free 0", "filled 1", "free 1")[len(marks)] if len(marks) < 4 else "gather"

        def set(self) -> None:
            log.append(("set", marks[id(self)]))

        def wait(self) -> None:
            log.append(("wait", marks[id(self)]))

    model = tiny_model("llama")
    shared = offloaded(model, staged=True)
    monkeypatch.setattr(offload, "Mark", Spy)
    engine = Engine(shared)
    next(engine.generate(prompts(10, 5), sampling(1)))

    def filling(slot: int) -> list[tuple[str, str]]:
        return [("set", f"free {slot}"), ("wait", f"free {slot}"), ("set", f"filled {slot}")]

    # Copies of layers 0 and 1 start. After layer 0 its place is for layer 2, and then no layer is left.
    # Gate and up each wait.
    assert log == [*filling(0), *filling(1), *[("wait", "filled 0")] * 2, *filling(0), *[("wait", "filled 1")] * 2,
                   *[("wait", "filled 0")] * 2]  # fmt: skip


def test_a_prompt_that_fails_half_way_leaves_no_wrong_layer(prompts: Prompts) -> None:
    """The next prompt begins with layer 0, whatever the places hold."""
    model = tiny_model("llama")
    engine = Engine(offloaded(model, staged=True))
    last = feed_forwards(engine._assembly.trees.full)[-1].layer
    failing = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(OutOfMemory):
        list(engine.generate(prompts(11, 9), sampling(2)))
    failing.remove()

    assert_same(answers(engine, prompts), answers(reference(model), prompts))


def test_the_twin_takes_no_more_room_than_the_largest_request_needs() -> None:
    """Full-size buffers would need the memory that the model does not fit into."""
    model = offloaded(tiny_model("llama"), staged=True)
    twin = DecodeTwin(model)
    for kept, neurons in ((5, 5), (20, 20), (3, 20)):
        loaded = twin.load(Kept([torch.arange(kept)] * 3))

        assert {block.contract.row_count for block in loaded} == {kept}
        assert {layer.room.buffers.neurons for layer in twin._layers} == {neurons}


def test_the_twin_frees_its_buffers_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a request that does not fit, a smaller one can still fit."""
    twin = DecodeTwin(offloaded(tiny_model("llama"), staged=True))
    calls = iter(range(100))

    def full(*arguments: object, **options: object) -> torch.Tensor:
        if next(calls) > 4:
            raise torch.OutOfMemoryError
        return torch.zeros(*arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr("griffin.decode.twin.torch.empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            twin.load(Kept([torch.arange(20)] * 3))

    assert all(layer.room.buffers is None for layer in twin._layers)
    assert len(twin.load(Kept([torch.arange(4)] * 3))) == 3


def test_a_step_that_reads_weights_in_place_is_refused() -> None:
    """The weights are not on the device."""
    with pytest.raises(ValueError, match="graph: this model's feed-forward weights stay on the host"):
        Engine(offloaded(tiny_model("llama"), staged=True), step="graph")


@pytest.fixture
def checkpoint(family: str, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """A model of each type, and its directory; some are saved in several files."""
    model, folder = tiny_model(family), tmp_path / "tiny"
    model.save_pretrained(folder, max_shard_size="40KB" if family in ("llama", "gpt2") else "5GB")
    word_tokenizer().save_pretrained(folder)
    return model, folder


def test_mapped_equals_resident(checkpoint: tuple[PreTrainedModel, Path], tmp_path: Path, prompts: Prompts) -> None:
    """From a directory with one file or several."""
    model, folder = checkpoint
    loaded = load(str(folder), device="cpu", dtype="float32", cache_dir=tmp_path / "cache", ff_offload=True)

    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter), name
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.model.get_buffer(name), buffer), name
    assert_same(answers(Engine(loaded.model, prefill_chunk=7), prompts), answers(reference(model), prompts))


def mapped_llama(folder: Path) -> PreTrainedModel:
    if not (folder / "config.json").exists():
        tiny_model("llama").save_pretrained(folder)
    return mapped_model(folder, torch.float32, folder.parent / "by-neuron", folder.name)


def host_file(folder: Path) -> Path:
    (file,) = (folder.parent / "by-neuron").rglob(mapped.FILE)
    return file


def test_weights_are_the_file_and_are_laid_out_by_neuron(tmp_path: Path) -> None:
    """Every FF matrix is inside the mapping, also after an engine was made."""
    model = mapped_llama(tmp_path / "tiny")
    engine = Engine(model)
    host = HostWeights.of(model)
    assert host is not None
    storage = host.layers[0].expand_FD.untyped_storage()
    begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()

    assert storage.nbytes() == host_file(tmp_path / "tiny").stat().st_size
    for tree in (model, engine._assembly.trees.full):
        for block in feed_forwards(tree):
            for projection in (*block.expand, block.contract):
                assert begin <= projection.weight.data_ptr() < end
    assert all(
        part.dense().untyped_storage().data_ptr() == begin
        for layer in engine._assembly.trees.twin._layers
        for part in (*layer._parts, layer._down)
    )


def resident_bytes() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is resident")
def test_feed_forward_weights_take_no_memory_of_their_own(tmp_path: Path, prompts: Prompts) -> None:
    """Of 113 MB, 101 are FF weights. Loading takes none of these, and decoding only the kept ones."""
    shape = {**CONFIGS["llama"], "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4, "head_dim": 64}
    config = AutoConfig.for_model("llama", vocab_size=128, max_position_embeddings=256, **shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "large")
    in_feed_forward = 4 * 3 * 512 * 4096 * 4
    mapped_llama(tmp_path / "large")
    before = resident_bytes()
    model = mapped_llama(tmp_path / "large")
    loaded = resident_bytes()
    engine = Engine(model)
    list(engine.generate(prompts(12, 20), sampling(3), Pruning(0.9)))
    used = resident_bytes()

    assert sum(loaded.values()) - sum(before.values()) < in_feed_forward / 4
    assert used["RssAnon"] - loaded["RssAnon"] < in_feed_forward / 2


def test_the_file_is_safetensors(tmp_path: Path) -> None:
    """Other programs can read it."""
    model = mapped_llama(tmp_path / "tiny")
    with safe_open(host_file(tmp_path / "tiny"), "pt") as file:
        assert sorted(file.keys()) == sorted(f"{n}.{kind}" for n in range(3) for kind in ("expand", "contract"))
        down = feed_forwards(model)[1].contract.weight
        assert torch.equal(file.get_tensor("1.contract"), down.t())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def alter(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[-100] ^= 0xFF
    file.write_bytes(contents)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
def test_a_damaged_file_is_made_again(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs one slow start, with a warning."""
    whole = {name: p.clone() for name, p in mapped_llama(tmp_path / "tiny").named_parameters()}
    damage(host_file(tmp_path / "tiny"))
    again = mapped_llama(tmp_path / "tiny")

    assert "making it again" in caplog.text
    assert all(torch.equal(parameter, whole[name]) for name, parameter in again.named_parameters())


def test_a_changed_checkpoint_has_another_file(tmp_path: Path) -> None:
    """A file made from the old weights is not used for the new ones."""
    mapped_llama(tmp_path / "tiny")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "tiny")
    model = mapped_llama(tmp_path / "tiny")

    expected = tiny_model("llama", seed=1)
    assert all(torch.equal(p, expected.get_parameter(name)) for name, p in model.named_parameters())


def test_from_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Prompts) -> None:
    """The dequantised copy in the cache is used like any directory. The first start makes both files."""
    read: list[Path] = []

    def read_gguf(path: Path, dtype: torch.dtype) -> tuple[object, PreTrainedTokenizerBase]:
        read.append(path)
        return tiny_model("llama").to(dtype), word_tokenizer()

    monkeypatch.setattr(gguf, "read_gguf", read_gguf)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF1")
    for _ in range(2):
        loaded = load(str(file), device="cpu", dtype="float32", cache_dir=tmp_path / "cache", ff_offload=True)

        assert HostWeights.of(loaded.model) is not None
        assert_same(answers(Engine(loaded.model), prompts), answers(reference(tiny_model("llama")), prompts))
    assert len(read) == 1


def test_checkpoints_that_leave_the_prefix_out(tmp_path: Path) -> None:
    """As in GPT-2's own checkpoint: h.0.mlp..., not transformer.h.0.mlp..."""
    model, folder = tiny_model("gpt2"), tmp_path / "tiny"
    model.transformer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    loaded = mapped_llama(folder)

    assert all(torch.equal(p, model.get_parameter(name)) for name, p in loaded.named_parameters())


def test_a_checkpoint_without_safetensors(tmp_path: Path) -> None:
    """One line: only safetensors can be mapped."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny")
    word_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "tiny/pytorch_model.bin")
    with pytest.raises(LoadError, match="has no safetensors"):
        load(str(tmp_path / "tiny"), device="cpu", cache_dir=tmp_path / "cache", ff_offload=True)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("change", ["lost", "cut"])
def test_a_weight_that_is_lost_or_cut(name: str, change: str, tmp_path: Path) -> None:
    """The error names it, mapped or not, and no file is left for the next start."""
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    file = tmp_path / "tiny/model.safetensors"
    weights = load_file(file)
    weights = {**weights, name: weights[name][1:].clone()} if change == "cut" else weights
    save_file({key: value for key, value in weights.items() if key != name or change == "cut"}, file, {"format": "pt"})
    for _ in range(2):
        with pytest.raises(LoadError, match=name):
            mapped_llama(tmp_path / "tiny")
