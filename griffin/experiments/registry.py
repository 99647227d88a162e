"""Registry: the paper's experiments by the names of their commands, in the paper's order."""

from griffin.experiments.common.experiment import Experiment
from griffin.experiments.paper import (
    classification,
    concentration,
    flocking,
    generation,
    jaccard,
    perplexity,
    randomness,
    sparsity,
    strategies,
)
from griffin.experiments.speed import latency

EXPERIMENTS: dict[str, Experiment] = {
    "flocking": flocking,
    "jaccard": jaccard,
    "sparsity": sparsity,
    "classification": classification,
    "generation": generation,
    "latency": latency,
    "selection": strategies,
    "perplexity": perplexity,
    "randomness": randomness,
    "gating": concentration,
}
