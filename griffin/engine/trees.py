"""The module trees of one engine over a model's weights, and the order in which they are made.

Each class takes the one before it, so the order cannot be wrong: weights are laid out by neuron, then merged for the
steps, then the twin gathers from them, and last the full tree streams weights that are not on its device.
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
    """The engine's own tree, because hooks sit on modules and engines must not share them. FF weights by neuron."""

    def __init__(self, origin: PreTrainedModel) -> None:
        """
        Args:
            origin: its weights get a new layout in place; their values stay.

        Raises:
            UnsupportedModel: see ``families.feed_forwards``.
        """
        # All trees copied from here on share these weights.
        GatesByInput.of(origin)
        self.model = share(origin)
        self.blocks = feed_forwards(self.model)
        store_by_neuron_(self.blocks)


class Merged:
    """The same tree, with weights merged if they read the same input.

    weights: for the steps; None if the model's blocks do not have the common form.
    accounting: counted while each layer still has its own weights.
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
        # The twin is a copy of the full tree and must not copy the hooks that stream.
        stream(self.full, self.blocks)


def lay_out(origin: PreTrainedModel) -> Trees:
    """The trees of one engine. Several engines may lay out one model; they share its weights."""
    return Trees(Merged(ByNeuron(origin)))
