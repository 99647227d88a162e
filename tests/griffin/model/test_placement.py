"""Where a model's weights go, and that it answers the same from there."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling
from griffin.engine.prefixes import PrefixStore
from griffin.errors import LoadError
from griffin.model import placement as devices
from griffin.model.families import feed_forwards
from griffin.model.forward import share
from griffin.model.host import HostWeights
from griffin.model.placement import MoveInputs, distribute, plan, resident_bytes, spread_
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    ("layers", "rest", "free", "numbers"),
    [
        ([10] * 4, 0, [100, 100], [0, 0, 1, 1]),
        # Embeddings need room on the first device.
        ([10] * 4, 20, [100, 100], [0, 1, 1, 1]),
        # In proportion to the free bytes.
        ([10] * 4, 0, [30, 10], [0, 0, 0, 1]),
        ([10] * 6, 0, [None, None, None], [0, 0, 1, 1, 2, 2]),
        ([10] * 3, 0, [100], [0, 0, 0]),
        # More devices than layers.
        ([10], 0, [50, 50, 50], [1]),
    ],
)
def test_layers_are_placed_in_runs(layers: list[int], rest: int, free: list[int | None], numbers: list[int]) -> None:
    """Each device is filled to the same fraction of its room, in bytes."""
    assert plan(layers, rest, free) == numbers


def test_a_model_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with the sizes."""
    with pytest.raises(LoadError, match=r"number 1 of them would hold 2\.0 GiB, but 1\.0 GiB are free"):
        plan([2**30] * 4, 0, [2**30, 2**30])
    monkeypatch.setattr(devices, "free_bytes", lambda device: 100)
    with pytest.raises(LoadError, match="does not fit on cpu"):
        distribute(tiny_model("llama"), [[CPU]])


def answers(engine: Engine, prompts: Prompts, seed: int | None = None) -> list[list[int]]:
    sampling = Sampling(temperature=0 if seed is None else 1, seed=seed, max_tokens=6, ignore_eos=True)
    return [
        [token.id for token in engine.generate(prompts(which, 12), sampling, Pruning(sparsity))]
        for which, sparsity in ((1, 0.5), (2, 0.0), (3, 0.8))
    ]


def test_a_model_across_devices_answers_the_same(model: PreTrainedModel, prompts: Prompts) -> None:
    """With its hooks, in every family, greedy and by seed. Here both devices are the CPU."""
    across = copy.deepcopy(model)
    spread_(across, [CPU, CPU])
    ours, resident = Engine(across, prefill_chunk=7), Engine(model, prefill_chunk=7, step="twin")

    for seed in (None, 3):
        assert answers(ours, prompts, seed) == answers(resident, prompts, seed)


def test_layers_and_their_hooks_are_on_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is on the first device, and the last layer returns its output there. Copies have the hooks, too."""
    model = tiny_model("gemma2")
    layer = resident_bytes(feed_forwards(model)[0].layer)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10 * layer if device == META else 9 * layer)
    spread_(model, [CPU, META])
    places = [{parameter.device for parameter in block.layer.parameters()} for block in feed_forwards(model)]

    assert places[0] == {CPU}
    assert places[-1] == {META}
    assert {p.device for name, p in model.named_parameters() if ".layers." not in name} == {CPU}
    for tree in (model, share(model)):
        hooks = [[*block.layer._forward_pre_hooks.values()] for block in feed_forwards(tree)]
        assert [hook.device for (hook,) in hooks] == [next(iter(place)) for place in places]
        assert next(iter(feed_forwards(tree)[-1].layer._forward_hooks.values())).device == CPU


def test_all_inputs_of_a_layer_move_to_its_device() -> None:
    """Hidden states, masks and pairs of cosine and sine move. The cache and other objects do not."""
    cache, one = object(), torch.ones(1)
    inputs, named = MoveInputs(META)(
        torch.nn.Identity(), (one, 3), {"mask": None, "rotary": (one, one), "masks": {"full": [one]}, "cache": cache}
    )

    assert (inputs[0].device, inputs[1]) == (META, 3)
    assert [part.device for part in (*named["rotary"], *named["masks"]["full"])] == [META] * 3
    assert (named["mask"], named["cache"]) == (None, cache)


def test_prefixes_are_resumed_on_each_layers_device(prompts: Prompts) -> None:
    """Also when keys and values come before the first forward pass."""
    model = tiny_model("llama")
    spread_(model, [CPU, CPU])
    store, prompt = PrefixStore(2**20, 8), prompts(4, 30)
    tokens = [
        [token.id for token in engine.generate(prompt, Sampling(temperature=0, max_tokens=4), Pruning(0.5))]
        for engine in (Engine(model, prefill_chunk=8, prefixes=store) for _ in range(2))
    ]

    assert tokens[0] == tokens[1]
    assert len(store) == 3


def test_a_copy_for_each_device() -> None:
    """The copies have equal weights in their own memory."""
    first, second = distribute(tiny_model("llama"), [[CPU], [CPU]])

    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(p.data_ptr() for p in second.parameters())
    assert all(torch.equal(p, second.get_parameter(name)) for name, p in first.named_parameters())


def test_a_model_that_fits_on_no_device_is_split_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small devices hold it together. If one has room for all of it, it is not split."""
    size = resident_bytes(tiny_model("llama"))
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(size * 0.9))
    assert [devices.across_devices(m) for m in distribute(tiny_model("llama"), [[CPU], [CPU]])] == [True]

    monkeypatch.setattr(devices, "free_bytes", lambda device: 2 * size)
    assert [devices.across_devices(m) for m in distribute(tiny_model("llama"), [[CPU], [CPU]])] == [False, False]


def test_offloading_needs_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """FF matrices count only for two layers. An offloaded model cannot be split over devices."""
    model = tiny_model("llama")
    needed = resident_bytes(model, ff_offload=True)
    matrices = 3 * 32 * 52 * 4
    assert resident_bytes(model) - needed == matrices
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed)
    (placed,) = distribute(model, [[CPU]], ff_offload=True)

    assert HostWeights.of(placed) is not None
    with pytest.raises(LoadError, match="ff-offload keeps a model on one device"):
        distribute(tiny_model("llama"), [[CPU, CPU]], ff_offload=True)


def test_only_one_step_runs_across_devices() -> None:
    """It is transformers' own forward pass, which has the hooks."""
    model = tiny_model("llama")
    spread_(model, [CPU, CPU])
    with pytest.raises(ValueError, match="lean: this model is across several devices"):
        Engine(model, step="lean")
