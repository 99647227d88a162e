"""What is measured once on general text: against autograd by hand, and kept in a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from griffin.errors import LoadError
from griffin.experiments.common.results import write_whole
from griffin.method.plus import measurement as calibrating
from griffin.method.plus.calibration import Calibration
from griffin.method.plus.measurement import calibrate
from griffin.model.identity import identity
from tests.griffin import oracle
from tests.tiny import tiny_model

SEQUENCES = [[5, 9, 11, 40, 7], [8, 3, 3, 90, 17, 21]]


def by_hand(model: PreTrainedModel) -> tuple[dict[str, Tensor], Tensor]:
    """Means over tokens, each layer's activations as leaves of their own; and the covariance ``(L, F, F)``."""
    generator, rows = torch.Generator().manual_seed(0), []
    activations: list[Tensor] = []
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
        activations.append(z_LTF)
        length_LT1 = z_LTF.norm(dim=2, keepdim=True)
        weight_LTF = (1 / length_LT1).expand_as(z_LTF)
        rows.append(
            torch.stack(
                [gradients_LTF.square() * length_LT1, z_LTF / length_LT1, z_LTF.square() / length_LT1, weight_LTF]
            )
        )
    sensitivity_LF, sum_LF, square_LF, weight_LF = torch.cat(rows, dim=2).mean(dim=2)
    z_LTF = torch.cat(activations, dim=1)
    x_LTF = (z_LTF - (sum_LF / weight_LF)[:, None]) * z_LTF.norm(dim=2, keepdim=True).rsqrt()
    means = {"sensitivity_LF": sensitivity_LF, "sum_LF": sum_LF, "square_LF": square_LF, "weight_L": weight_LF[:, 0]}
    return means, x_LTF.mT @ x_LTF / x_LTF.shape[1]


def test_means_over_tokens(model: PreTrainedModel) -> None:
    """In every family, with labels that the model itself draws; the first token of a sequence is left out."""
    expected, _ = by_hand(model.requires_grad_(True))

    found = calibrate(model.requires_grad_(False), SEQUENCES)

    for name, table in expected.items():
        torch.testing.assert_close(getattr(found, name), table, atol=1e-8, rtol=1e-3)


def test_reach(model: PreTrainedModel) -> None:
    """In every family: z over what the gate gives, its root mean square; 1 where there is no gate."""
    squares: list[list[Tensor]] = []
    for ids in SEQUENCES:
        with oracle.recorded(model) as activations, oracle.gated(model) as gates, torch.no_grad():
            model(torch.tensor([ids]))
        squares.append([(z[1:] / g[1:]).square() for z, g in zip(activations, gates or activations, strict=True)])
    expected_LF = torch.stack([torch.cat(of_layer).mean(dim=0).sqrt() for of_layer in zip(*squares, strict=True)])

    found = calibrate(model.requires_grad_(False), SEQUENCES)

    # A ReLU's zeros are no numbers over themselves.
    torch.testing.assert_close(found.reach_LF, expected_LF.nan_to_num(nan=1), atol=1e-6, rtol=1e-3)


def test_directions(model: PreTrainedModel) -> None:
    """In every family: with as many as there are tokens, they give the covariance; what they leave out is the rest."""
    _, covariance_LFF = by_hand(model.requires_grad_(True))

    found = calibrate(model.requires_grad_(False), SEQUENCES)

    directions_LPF = found.directions_LPF.float()
    lengths_LP = directions_LPF.norm(dim=2)
    assert (lengths_LP[:, :-1] >= lengths_LP[:, 1:] - 1e-4).all()
    # Tokens are held in half precision.
    scale = covariance_LFF.abs().max()
    torch.testing.assert_close(directions_LPF.mT @ directions_LPF, covariance_LFF, atol=float(0.01 * scale), rtol=0)
    assert found.unexplained_LF.max() < 0.01 * scale


def test_fewer_directions_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variance along the longest, and what is left of each neuron's, are all there is."""
    monkeypatch.setattr(calibrating, "DIRECTIONS", 3)
    found = calibrate(tiny_model("llama").requires_grad_(False), SEQUENCES)

    assert found.directions_LPF.shape == (3, 3, 52)
    explained_LF = found.directions_LPF.float().square().sum(dim=1)
    torch.testing.assert_close(explained_LF + found.unexplained_LF, found.moments(1).variance(), atol=1e-6, rtol=0.02)
    assert (found.unexplained_LF.sum(dim=1) > 0.05 * explained_LF.sum(dim=1)).all()


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
    torch.testing.assert_close(read.directions_LPF, found.directions_LPF)
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
