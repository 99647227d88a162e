"""What is measured once on general text: against autograd by hand, and kept in a file."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from griffin.calibration import NAMES, Calibration, calibrate, identity
from griffin.errors import LoadError
from griffin.experiments.results import write_whole
from tests.griffin import oracle
from tests.tiny import tiny_model

SEQUENCES = [[5, 9, 11, 40, 7], [8, 3, 3, 90, 17, 21]]


def by_hand(model: PreTrainedModel) -> Calibration:
    """Token by token, each layer's activations as leaves of their own."""
    generator, rows = torch.Generator().manual_seed(0), []
    for ids in SEQUENCES:
        held: list[torch.Tensor] = []

        def hold(_: object, inputs: tuple[torch.Tensor, ...], held: list[torch.Tensor] = held) -> None:
            inputs[0].retain_grad()
            held.append(inputs[0])

        hooks = [module.register_forward_pre_hook(hold) for module in oracle.contracts(model)]
        logits_TV = model(torch.tensor([ids])).logits[0]
        labels_T = torch.multinomial(logits_TV.detach().softmax(1), 1, generator=generator)[:, 0]
        functional.cross_entropy(logits_TV, labels_T, reduction="sum").backward()
        for hook in hooks:
            hook.remove()
        z_LTF = torch.stack([z.detach().reshape(-1, z.shape[-1])[1:] for z in held])
        gradients_LTF = torch.stack([z.grad.reshape(-1, z.shape[-1])[1:] for z in held])
        length_LT1 = z_LTF.norm(dim=2, keepdim=True)
        weight_LTF = (1 / length_LT1).expand_as(z_LTF)
        rows.append(
            torch.stack(
                [gradients_LTF.square() * length_LT1, z_LTF / length_LT1, z_LTF.square() / length_LT1, weight_LTF]
            )
        )
    *tables, weight_LF = torch.cat(rows, dim=2).mean(dim=2)
    return Calibration(*tables, weight_LF[:, 0])


def test_means_over_tokens(model: PreTrainedModel) -> None:
    """In every family, with labels that the model itself draws; the first token of a sequence is left out."""
    expected = by_hand(model.requires_grad_(True))

    found = calibrate(model.requires_grad_(False), SEQUENCES)

    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-8, rtol=1e-3)


def test_a_file_of_it(tmp_path: Path) -> None:
    """Half precision loses next to nothing; another model's file, or none, is no calibration."""
    model, path = tiny_model("llama").requires_grad_(False), tmp_path / "calibrations" / "it.safetensors"
    found = calibrate(model, SEQUENCES)
    write_whole(path, found.packed("this"))

    read = Calibration.read(path, "this")

    assert read is not None
    torch.testing.assert_close(read.sensitivity_LF, found.sensitivity_LF, rtol=3e-3, atol=1e-9)
    torch.testing.assert_close(read.sum_LF, found.sum_LF, rtol=3e-3, atol=1e-7)
    torch.testing.assert_close(read.weight_L, found.weight_L)
    assert Calibration.read(path, "that") is None
    assert Calibration.read(tmp_path / "nothing", "this") is None
    assert [file.name for file in path.parent.iterdir()] == ["it.safetensors"]


def test_a_damaged_file(tmp_path: Path) -> None:
    """Says which file, and what to do."""
    path = tmp_path / "it.safetensors"
    path.write_bytes(b"not a file of tensors")

    with pytest.raises(LoadError, match="delete it and calibrate again"):
        Calibration.read(path, "this")


def test_a_model_is_known_again() -> None:
    """In another dtype and layout it is the same; with other weights it is not."""
    model = tiny_model("llama").to(torch.bfloat16)
    name = identity(model)

    assert identity(model.float()) == name
    with torch.no_grad():
        oracle.contracts(model)[1].weight[0, 0] += 1
    assert identity(model) != name
