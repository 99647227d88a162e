"""A generation ends at every id that one of the model's files calls an end."""

import json
from pathlib import Path

import pytest

from griffin import Pruning, Sampling
from griffin.engine.engine import Engine
from griffin.model.checkpoint.ends import configured_ends
from griffin.model.loading import Checkpoint, load
from tests.griffin.model.checkpoint.files import change_config, write_directory
from tests.tiny import tiny_model


def test_the_union_of_all_files(tmp_path: Path, smollm2: Checkpoint) -> None:
    """generation_config, config and the tokenizer name different ids."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer, vocab_size=49_152)
    change_config(folder, eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    tokenizer_id = smollm2.tokenizer.eos_token_id
    engine = Engine(load(str(folder), device="cpu", dtype="float32").model)

    assert engine.eos_token_ids == {5, 6, 7, 8, tokenizer_id}
    for id in engine.eos_token_ids:
        forced = Sampling(max_tokens=5, temperature=0, logit_bias={id: 100.0})
        tokens = list(engine.generate([10, 11], forced, Pruning()))
        assert [token.finish_reason for token in tokens] == ["stop"]


@pytest.mark.parametrize(("named", "expected"), [(None, set()), (3, {3}), ([3, 4], {3, 4}), ([], set())])
def test_every_form_of_end_ids(named: object, expected: set[int]) -> None:
    """A number, several, or none."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = named

    assert configured_ends(model) == expected


def test_ignore_eos_and_min_tokens_follow_the_union(tmp_path: Path, smollm2: Checkpoint) -> None:
    """ignore_eos ignores all ends, and min_tokens delays all of them."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer, vocab_size=49_152)
    change_config(folder, eos_token_id=[5, 6])
    engine = Engine(load(str(folder), device="cpu", dtype="float32").model)
    forced = {5: 100.0, 6: 90.0}
    ignoring = Sampling(max_tokens=3, temperature=0, logit_bias=forced, ignore_eos=True)
    waiting = Sampling(max_tokens=5, min_tokens=2, temperature=0, logit_bias=forced)

    assert [token.id for token in engine.generate([10], ignoring, Pruning())] == [5, 5, 5]
    ids = [token.id for token in engine.generate([10], waiting, Pruning())]
    assert len(ids) == 3
    assert not {5, 6} & set(ids[:2])
    assert ids[2] == 5
