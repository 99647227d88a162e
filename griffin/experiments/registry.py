"""The paper's experiments, in its order."""

from griffin.experiments import classification, generation, selection, sparsity
from griffin.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "sparsity": sparsity,
    "classification": classification,
    "generation": generation,
    "selection": selection,
}
