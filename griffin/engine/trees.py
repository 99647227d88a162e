"""The module trees of one engine over a model's weights, and the order in which they must be made.

Each class takes the one before it, so the order cannot be mistaken: weights are laid out by neuron, then merged for the
steps, then the twin gathers from them, and at last the full tree streams what is not on its device.
"""

from transformers import PreTrainedModel

from griffin.decode.twin import DecodeTwin
from griffin.model.accounting import Accounting
from griffin.model.families import feed_forwards
from griffin.model.forward import share
from griffin.model.gates import GatesByInput
from griffin.model.host import stream
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import read_weights


class ByNeuron:
    """A tree of its own, because hooks sit on modules and engines must not see each other's. FF weights by neuron."""

    def __init__(self, origin: PreTrainedModel) -> None:
        """
        Args:
            origin: its weights are laid out anew in place; their values stay.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
        """
        # Shared by all trees that are copied from now on.
        GatesByInput.of(origin)
        self.model = share(origin)
        self.blocks = feed_forwards(self.model)
        store_by_neuron_(self.blocks)


class Merged:
    """The same tree, with weights that read the same input merged.

    weights: for the steps; None if the model's blocks do not have the common form.
    accounting: counted while each layer still has weights of its own.
    """

    def __init__(self, tree: ByNeuron) -> None:
        self.model, self.blocks = tree.model, tree.blocks
        self.weights = read_weights(tree.model)
        self.accounting = Accounting.of(tree.model)


class Trees:
    """Both trees, ready to run.

    full: the model's own tree.
    blocks: its FF blocks.
    twin: the tree of kept neurons.
    """

    def __init__(self, merged: Merged) -> None:
        self.full, self.blocks = merged.model, merged.blocks
        self.weights, self.accounting = merged.weights, merged.accounting
        self.device = self.full.device
        self.twin = DecodeTwin(self.full)
        # The twin is a copy of the full tree, and must not copy the hooks that stream.
        stream(self.full, self.blocks)


def lay_out(origin: PreTrainedModel) -> Trees:
    """The trees of one engine. Several engines may lay out one model; they share its weights."""
    return Trees(Merged(ByNeuron(origin)))
