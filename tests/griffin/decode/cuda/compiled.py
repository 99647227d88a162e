"""Compiles the kernels of steps and passes without a GPU, and prints a line of JSON with the registers of each.

``python -m tests.griffin.decode.cuda.compiled [--kinds Q4_K,Q6_K] [--shapes 4096x14336] [--targets 80,89,90]``, run
in the repository's root. The variable TRITON_INTERPRET must not be set.

The launchers run unchanged on tensors of the right shapes; no kernel runs. Registers spill to the stack.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import triton
from gguf import GGMLQuantizationType
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from griffin.decode.cuda import grouped, kernels
from griffin.model.checkpoint.gguf_codes import GROUPINGS
from griffin.model.matrix.grouped import GroupedColumns, GroupedRows, column_records
from griffin.model.matrix.grouping import Grouping, Layout
from griffin.model.weights import Norm

HALF = torch.bfloat16


@dataclass(frozen=True)
class Compiled:
    """The resources of one kernel.

    stack: bytes for each thread, in addition to its registers.
    sums: each reduction's axis, shape and layout, which determine its order; sorted, without repeats.
    """

    kernel: str
    case: str
    target: int
    registers: int
    stack: int
    sums: tuple[str, ...]


class Driver:
    """Plays the role of a missing device for the compiler. The device's number is the target's."""

    def __init__(self, target: int) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target, 32)

    def get_current_device(self) -> int:
        return self._target

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(case: str, target: int, launch: Callable[[], None]) -> Iterator[Compiled]:
    """The kernels that ``launch`` would start. They are compiled and not run."""
    found: list[tuple[str, Any]] = []

    def item(function: Any, grid: Any) -> Callable[..., None]:
        name = function.fn.__name__
        return lambda *arguments, **options: found.append((name, function.warmup(*arguments, grid=grid, **options)))

    triton.runtime.driver.set_active(Driver(target))
    own = JITFunction.__getitem__
    JITFunction.__getitem__ = item
    try:
        launch()
    finally:
        JITFunction.__getitem__ = own
    for name, kernel in found:
        yield Compiled(name, case, target, *_resources(kernel.asm["cubin"]), _sums(kernel.asm["ttgir"]))


def _resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", text)[-1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _sums(text: str) -> tuple[str, ...]:
    layouts = dict(re.findall(r"(#\w+) = (#ttg\.[^\n]+)", text))
    found = re.findall(
        r'"tt\.reduce"\(%[^)]*\) <\{axis = (\d)[^\n]*\}>.*?\}\) (?:\{[^}]*\} )?: \(([^)]*)\)', text, re.S
    )
    spelled = (f"{axis} " + re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), shape) for axis, shape in found)
    return tuple(sorted(set(spelled)))


def empty(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def fp32(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.float32)


def integers(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def picking(
    gate_DF: Tensor, parts: int, D: int, F: int, *, gated: bool, tokens: int = 1
) -> kernels.Picking:  # fmt: skip
    return kernels.Picking(
        picks=integers(1), gate_DF=gate_DF, means_D=fp32(D), input_limits_D=fp32(D), offsets_F=fp32(F),
        gate_limits_F=fp32(F) if gated else None, resting_F=fp32(F), output_limits_F=fp32(F),
        partial_MPF=fp32(tokens, parts, F), reads=empty(4, dtype=torch.int64),
        count=integers(1) if tokens > 1 else None,
    )  # fmt: skip


def plain(D: int, F: int, *, gated: bool, tokens: int = 1) -> None:
    """The kernels of an FF block of plain numbers, for a number of tokens."""
    x_MD, normed_MD, norm = empty(tokens, D), empty(tokens, D), Norm(empty(D), None, 1e-5, False)
    by = picking(empty(D, F), kernels.row_splits(D, F), D, F, gated=gated, tokens=tokens)
    weight, contract_FD = empty(2 * F if gated else F, D), empty(F, D)
    partial_MPD, index_F, kept = fp32(tokens, kernels.row_splits(F, D), D), integers(F), integers(1)
    seen = kernels.Observed(empty(tokens, F), empty(tokens, F) if gated else None) if tokens > 1 else None
    kernels.sum_inputs(x_MD, by, norm=norm)
    kernels.expand(
        x_MD, weight, index_F, kept, fp32(tokens, F),
        activation="silu", norm=norm, picking=by, normed_MD=normed_MD, observed=seen,
    )  # fmt: skip
    kernels.contract(fp32(tokens, F), index_F, kept, contract_FD, partial_MPD, by.picks)


def around(D: int, *, tokens: int = 1) -> None:
    """The kernels of the rest of a layer with heads of 128 elements, and of a head over 128 256 tokens."""
    H, G, S, C = max(2, D // 128), max(1, D // 512), 128, 4096
    x_MD, y_MD, normed_MD = (empty(tokens, D) for _ in range(3))
    norm, position, keys = Norm(empty(D), None, 1e-5, False), empty(1, dtype=torch.int64), empty(1, G, C, S)
    qkv, q_MHS, logits_MV = empty(tokens, (H + 2 * G) * S), empty(tokens, H, S), empty(tokens, 128256)
    parts = fp32(tokens, H, kernels.MOST_SPLITS, S), fp32(tokens, 2, H, kernels.MOST_SPLITS)
    kernels.embed(empty(tokens, dtype=torch.int64), position, empty(1000, D), 1.0, None, x_MD)
    kernels.project(x_MD, empty((H + 2 * G) * S, D), qkv, norm=norm, normed_MD=normed_MD)
    kernels.rotate_and_store(qkv, position, q_MHS, keys, keys, frequencies_R=fp32(S // 2))
    kernels.attend(q_MHS, keys, keys, position, *parts, q_MHS, bucket=C, scale=0.1)
    kernels.project(q_MHS.flatten(1), empty(D, H * S), x_MD, residual_MN=x_MD)
    kernels.reduce_add(fp32(tokens, 64, D), x_MD, residual_MD=x_MD)
    kernels.normalise_add(x_MD, y_MD, norm)
    kernels.project(x_MD, empty(128256, D), logits_MV, norm=norm, normed_MD=normed_MD)


def rows(grouping: Grouping, count: int, columns: int) -> grouped.Rows:
    stride = Layout.of_rows(grouping, columns).row_stride
    return grouped.Rows.of(GroupedRows(empty(count, stride, dtype=torch.uint8), grouping, columns, HALF))


def columns(grouping: Grouping, count: int, width: int) -> grouped.Columns:
    layout, (groups, supers) = Layout.of_columns(grouping, width), column_records(grouping, count)
    sizes = ((count, layout.row_stride), (groups, layout.record_stride), (supers, layout.super_stride))
    codes, records, second = (empty(*size, dtype=torch.uint8) for size in sizes)
    return grouped.Columns.of(
        GroupedColumns(codes, None, records, second if supers else None, grouping, width, HALF)
    )  # fmt: skip


def coded(grouping: Grouping, D: int, F: int) -> None:
    """The kernels of an FF block of codes, and of a projection."""
    x_D, norm = empty(D), Norm(empty(D), None, 1e-5, False)
    x_KW = grouped.arranged(D, grouping.bits, x_D.device)
    gate, up, by_input, contract = (
        rows(grouping, F, D),
        rows(grouping, F, D),
        columns(grouping, D, F),
        columns(grouping, F, D),
    )
    by = picking(empty(0), grouped.row_splits(by_input), D, F, gated=True)
    grouped.arrange(x_D, x_KW, norm)
    grouped.project(x_KW, gate, empty(F))
    grouped.sum_inputs(x_D, by_input, by, norm=norm)
    grouped.expand(
        x_KW, x_KW, gate, up, integers(F), integers(1), fp32(F), activation="silu", dtype=HALF, picking=by
    )  # fmt: skip
    grouped.contract(fp32(F), contract, fp32(grouped.row_splits(contract), D))


def every(kinds: list[str], shapes: list[tuple[int, int]], targets: list[int]) -> Iterator[Compiled]:
    """Blocks of D inputs and F neurons. Kinds of codes whose blocks do not divide D and F are left out."""
    for target, (D, F) in product(targets, shapes):
        size = f"{D}x{F}"
        for tokens in kernels.GROUPED:
            yield from compiled(f"gated {size} {tokens}", target, partial(plain, D, F, gated=True, tokens=tokens))
            yield from compiled(f"plain {size} {tokens}", target, partial(plain, D, F, gated=False, tokens=tokens))
            yield from compiled(f"around {size} {tokens}", target, partial(around, D, tokens=tokens))
        for kind in kinds:
            grouping = GROUPINGS[GGMLQuantizationType[kind]]
            if D % grouping.unit == F % grouping.unit == 0:
                yield from compiled(f"{kind} {size}", target, partial(coded, grouping, D, F))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(kind.name for kind in GROUPINGS))
    parser.add_argument("--shapes", default="4096x14336,1536x8960,576x1536")
    parser.add_argument("--targets", default="80,89,90")
    given = parser.parse_args()
    shapes = [(int(D), int(F)) for D, F in (shape.split("x") for shape in given.shapes.split(","))]
    targets = [int(target) for target in given.targets.split(",")]
    for found in every(given.kinds.split(","), shapes, targets):
        print(json.dumps(vars(found)), flush=True)


if __name__ == "__main__":
    main()
