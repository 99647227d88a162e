"""The paper's experiments, in the order of their figures and tables."""

from griffin.experiments.experiment import Experiment
from griffin.experiments.paper import (
    classification,
    flocking,
    gating,
    generation,
    jaccard,
    perplexity,
    randomness,
    selection,
    sparsity,
)
from griffin.experiments.speed import latency

EXPERIMENTS: dict[str, Experiment] = {
    "flocking": flocking,
    "jaccard": jaccard,
    "sparsity": sparsity,
    "classification": classification,
    "generation": generation,
    "latency": latency,
    "selection": selection,
    "perplexity": perplexity,
    "randomness": randomness,
    "gating": gating,
}
