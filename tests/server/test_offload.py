"""A server that reads the model's FF weights from a mapped file."""

from pathlib import Path

import httpx

from griffin import Engine, Pruning, Sampling, load
from griffin.model.loading import Checkpoint
from tests.server import tiny_checkpoint
from tests.server.process import running

PROMPT = "Once upon a time"


def test_a_pruned_and_a_dense_completion(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The answers equal those of a model in memory; the log warns of the cost of the dense one."""
    folder = tiny_checkpoint.write(tmp_path / "tiny", smollm2.tokenizer)
    resident = load(str(folder), device="cpu", dtype="float32")
    engine, ids = Engine(resident.model, step="twin"), resident.tokenizer(PROMPT).input_ids
    options = ("--model", str(folder), "--device", "cpu", "--dtype", "float32", "--cache-dir", str(tmp_path / "cache"))
    with running(*options, GRIFFIN_FF_OFFLOAD="cpu") as server:
        for sparsity, kept in ((0.5, 16), (0, 32)):
            body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "sparsity": sparsity}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
            tokens = engine.generate(ids, Sampling(temperature=0, max_tokens=8), Pruning(sparsity))

            assert answer["choices"][0]["text"] == resident.tokenizer.decode([token.id for token in tokens])
            assert answer["griffin"]["neurons_kept"] == kept * 2
            assert ("reads all feed-forward weights" in server.log) == (sparsity == 0)
    assert list((tmp_path / "cache/by-neuron").rglob("*.safetensors"))
