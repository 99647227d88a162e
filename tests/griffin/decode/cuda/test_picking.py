"""The kernels that pick by thresholds, against plain torch. Weights that must not be read are NaN."""

import pytest
import torch
from torch import Tensor

from griffin.model.weights import Norm
from tests.griffin.decode.cuda.test_kernels import (
    DEVICE,
    DTYPES,
    D,
    F,
    activated,
    assert_near,
    kernels,
    make_norm,
    nans,
    normed,
    randn,
    scalar,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Block:
    """An FF block of random weights, and thresholds that are far from every value that they are compared to.

    up_FD: None without a gate.
    reads: int64 ``(4,)``.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        gated: bool,
        biased: bool = False,
        norm: Norm | None = None,
        shares: tuple[float, float, float] = (0.5, 0.4, 0.3),
        activation: str = "silu",
    ) -> None:
        self.norm, self.activation, self.gated = norm, activation, gated
        self.x_D = randn(D, dtype=dtype)
        self.gate_FD, self.contract_FD = 0.1 * randn(F, D, dtype=dtype), 0.1 * randn(F, D, dtype=dtype)
        self.up_FD = 0.1 * randn(F, D, dtype=dtype) if gated else None
        self.bias = randn(2 * F if gated else F, dtype=dtype) if biased else None
        self.reads = torch.zeros(4, dtype=torch.int64, device=DEVICE)
        self.means_D, self.resting_F = 0.3 * randn(D), 0.1 * randn(F)
        bias = torch.zeros(2, F, device=DEVICE) if self.bias is None else self.bias.float().view(-1, F)
        self.offsets_F = self.gate_FD.float() @ self.means_D + bias[0]

        far_D = normed(self.x_D, norm) - self.means_D
        self.near_D, self.input_limits_D = self._divided(far_D, shares[0])
        given_F = activated((self.gate_FD.float() @ far_D.where(~self.near_D, 0)) + self.offsets_F, activation)
        self.rests_F, self.gate_limits_F = self._divided(given_F, shares[1] if gated else 1)
        z_F = given_F
        if self.up_FD is not None:
            z_F = given_F * (self.up_FD.float() @ normed(self.x_D, norm) + bias[1])
        far_F = z_F - self.resting_F
        gives_nothing_F, self.output_limits_F = self._divided(far_F, shares[2])
        self.silent_F = gives_nothing_F | self.rests_F
        self.z_F = far_F.where(~self.silent_F, 0)

    @staticmethod
    def _divided(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """A random 1 - ``share`` of the values, and limits: well above these values, well below all others."""
        near = torch.rand(len(values), device=DEVICE) >= share
        return near, torch.where(near, 1.5 * values.abs() + 0.05, 0.7 * values.abs() - 0.05)

    def spoil_(self) -> None:
        """Set all weights that must not be read to NaN. The gate is stored by input; by neuron it must not be read."""
        self.gate_by_input_DF = self.gate_FD.t().contiguous()
        self.gate_by_input_DF[self.near_D] = torch.nan
        self.gate_FD.fill_(torch.nan)
        if self.up_FD is not None:
            self.up_FD[self.rests_F] = torch.nan
        self.contract_FD[self.silent_F] = torch.nan

    def run(self, tokens: int = 1) -> tuple[Tensor, Tensor]:
        """z, and the output of the block without its bias."""
        picking = kernels.Picking(
            picks=scalar(1, torch.int32),
            gate_DF=self.gate_by_input_DF,
            means_D=self.means_D,
            input_limits_D=self.input_limits_D,
            offsets_F=self.offsets_F,
            gate_limits_F=self.gate_limits_F if self.gated else None,
            resting_F=self.resting_F,
            output_limits_F=self.output_limits_F,
            partial_MPF=nans(kernels.row_splits(D, F), F),
            reads=self.reads,
        )
        weight = self.gate_FD if self.up_FD is None else torch.cat((self.gate_FD, self.up_FD))
        everything_F, kept = torch.arange(F, dtype=torch.int32, device=DEVICE), scalar(F, torch.int32)
        z_F, partial_PD = nans(F), nans(kernels.row_splits(F, D), D)
        for _ in range(tokens):
            kernels.sum_inputs(self.x_D, picking, norm=self.norm)
            kernels.expand(
                self.x_D, weight, everything_F, kept, z_F,
                activation=self.activation, bias=self.bias, norm=self.norm, picking=picking,
            )  # fmt: skip
            kernels.contract(z_F, everything_F, kept, self.contract_FD, partial_PD, picking.picks)
        return z_F, partial_PD.sum(dim=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_reads_what_it_picks_and_nothing_else(dtype: torch.dtype, gated: bool, biased: bool) -> None:
    """It reads inputs, rows of up and rows of the second projection, and counts them."""
    block = Block(dtype, gated=gated, biased=biased, norm=make_norm("rms", D, dtype))
    expected_D = block.z_F @ block.contract_FD.float()
    block.spoil_()
    z_F, out_D = block.run(tokens=2)

    assert_near(z_F, block.z_F, dtype)
    assert_near(out_D, expected_D, dtype)
    counts = [int((~skipped).sum()) for skipped in (block.near_D, block.rests_F, block.silent_F)]
    assert block.reads.tolist() == [2 * count for count in (*counts, 1)]
    assert 0 < counts[2] < counts[1] <= F
    assert 0 < counts[0] < D


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shares", [(0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)])
@pytest.mark.parametrize("kind", ["none", "layer"])
def test_any_stage_may_read_nothing_or_everything(kind: str, shares: tuple[float, float, float], gated: bool) -> None:
    """The counts then are all or none."""
    block = Block(torch.float32, gated=gated, norm=make_norm(kind, D, torch.float32), shares=shares)
    expected_D = block.z_F @ block.contract_FD
    block.spoil_()
    z_F, out_D = block.run()

    assert_near(z_F, block.z_F, torch.float32)
    assert_near(out_D, expected_D, torch.float32)
    acting = F * shares[1] if gated else F
    assert block.reads.tolist() == [D * shares[0], acting, min(acting, F * shares[2]), 1]


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_every_activation(activation: str) -> None:
    """All other tests have SiLU."""
    block = Block(torch.float32, gated=True, activation=activation)
    block.spoil_()

    assert_near(block.run()[0], block.z_F, torch.float32)


def test_sums_repeat_bit_by_bit() -> None:
    """The order of sums is fixed."""
    block = Block(torch.float32, gated=True)
    block.spoil_()
    first, second = block.run(), block.run()

    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_nothing_is_summed_where_no_token_picks() -> None:
    """The sums do not change, and nothing is counted."""
    block = Block(torch.float32, gated=True)
    block.spoil_()
    partial_PF = nans(kernels.row_splits(D, F), F)
    picking = kernels.Picking(
        scalar(0, torch.int32), block.gate_by_input_DF, block.means_D, block.input_limits_D, block.offsets_F,
        block.gate_limits_F, block.resting_F, block.output_limits_F, partial_PF, block.reads,
    )  # fmt: skip
    kernels.sum_inputs(block.x_D, picking)

    assert partial_PF.isnan().all()
    assert not block.reads.any()
