"""The paper's experiments, in its order."""

from griffin.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {}
