"""Measurements of a model that the user's cache keeps: the losses at each sparsity, for sparsity auto."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from transformers import PreTrainedModel

from griffin.errors import InvalidRequest
from griffin.method.auto import LossTable
from griffin.method.methods import METHODS
from griffin.model.host import HostWeights
from griffin.model.identity import identity
from griffin.request import METHOD_NAMES, MethodName, Pruning
from griffin.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Preparation:
    """
    losses: for sparsity auto, one table for each measured method.
    streamed: the model's FF weights stay on the host. Kept neurons can be copied to the device before decoding, but
        the choice of griffin+ changes with each token.
    """

    losses: Sequence[LossTable] = ()
    streamed: bool = False

    @classmethod
    def read(cls, model: PreTrainedModel, cache_dir: Path | None = None) -> "Preparation":
        """The measurements that the cache holds for a model.

        Raises:
            LoadError: a file in the cache is damaged.
        """
        name = identity(model)
        found = [LossTable.read(losses_path(model, method, cache_dir), name) for method in METHOD_NAMES]
        return cls([table for table in found if table is not None], HostWeights.of(model) is not None)

    @property
    def tables(self) -> dict[str, LossTable]:
        """The loss table of each method that sparsity auto can use: the measured one, else the usual one."""
        usual = [row.usual_losses for row in METHODS.values() if row.usual_losses is not None]
        return {table.method: table for table in (*usual, *self.losses)}

    def allows(self, method: MethodName) -> bool:
        """Whether a method can prune this model."""
        return not (self.streamed and METHODS[method].reads_in_place)

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned in this way.
        """
        method = pruning.method
        picked = pruning.reuse is not None and isinstance(pruning.reuse.chosen, Thresholds)
        if not self.allows(method) or (picked and self.streamed):
            raise InvalidRequest(
                "griffin.method: 'griffin+' reads weights in place, but this server streams them (--ff-offload); "
                "use method 'griffin'",
                "griffin.method",
            )
        if pruning.auto is not None and method not in self.tables:
            able = [f"; or use method '{name}'" for name in METHOD_NAMES if name in self.tables and self.allows(name)]
            raise InvalidRequest(
                f"sparsity: 'auto' with method '{method}' needs this model to be measured once: python -m griffin tune "
                f"--method {method} --model MODEL --prompts FILE; or name a number{''.join(able)}",
                "sparsity",
            )


def losses_path(model: PreTrainedModel, method: MethodName, cache_dir: Path | None = None) -> Path:
    """The file with a model's losses by a method."""
    folder = (cache_dir or platformdirs.user_cache_path("griffin")) / "losses"
    return folder / f"{identity(model)}-{method}.json"
