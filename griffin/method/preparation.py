"""What was measured once of a model and is kept in the user's cache: what sparsities cost it, for sparsity auto."""

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
    losses: for sparsity auto, a table for each method that was measured.
    streamed: whether the model's FF weights stay on the host. Kept neurons can be brought to the device, but the next
        token's choice of griffin+ cannot.
    """

    losses: Sequence[LossTable] = ()
    streamed: bool = False

    @classmethod
    def read(cls, model: PreTrainedModel, cache_dir: Path | None = None) -> "Preparation":
        """What the cache holds for a model.

        Raises:
            LoadError: a file there is damaged.
        """
        name = identity(model)
        found = [LossTable.read(losses_path(model, method, cache_dir), name) for method in METHOD_NAMES]
        return cls([table for table in found if table is not None], HostWeights.of(model) is not None)

    @property
    def tables(self) -> dict[str, LossTable]:
        """What sparsity auto goes by, for each method that it can use: what was measured, else usual losses."""
        usual = [row.usual_losses for row in METHODS.values() if row.usual_losses is not None]
        return {table.method: table for table in (*usual, *self.losses)}

    def allows(self, method: MethodName) -> bool:
        """Whether this model can be pruned by a method."""
        return not (self.streamed and METHODS[method].reads_in_place)

    def require(self, pruning: Pruning) -> None:
        """
        Raises:
            InvalidRequest: this model cannot be pruned so.
        """
        method = pruning.method
        picked = pruning.reuse is not None and isinstance(pruning.reuse.chosen, Thresholds)
        if not self.allows(method) or (picked and self.streamed):
            raise InvalidRequest(
                "griffin.method: 'griffin+' reads weights where they are, and this server streams them (--ff-offload); "
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
    """Where the table of a model's losses by a method is kept."""
    folder = (cache_dir or platformdirs.user_cache_path("griffin")) / "losses"
    return folder / f"{identity(model)}-{method}.json"
