"""The paper's own numbers: Tables 1 to 4 of Dong, Chen and Chi (2024), arXiv:2404.01365, as printed there.

Scores are in percent, times in seconds. 50 % of the FF neurons are removed unless a comment says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from griffin.experiments.tasks.names import CLASSIFICATION

CITATION = "Dong, Chen and Chi (2024)"
ADDRESS = "https://arxiv.org/abs/2404.01365"

Row = tuple[float, ...]
Rows = Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One of the paper's tables of scores, in percent.

    number: its number in the paper.
    columns: the task and the metric of each figure in a row.
    rows: by model, then by variant, which has the name that it has in our experiments.
    """

    number: int
    columns: Sequence[tuple[str, str]]
    rows: Rows

    @property
    def metrics(self) -> dict[str, list[str]]:
        """The metrics of each task, in the order of the table."""
        found: dict[str, list[str]] = {}
        for task, metric in self.columns:
            found.setdefault(task, []).append(metric)
        return found

    def score(self, model: str, variant: str, task: str, metric: str) -> float:
        """One score, in percent."""
        return self.rows[model][variant][list(self.columns).index((task, metric))]


CLASSIFICATION_COLUMNS = tuple((task, "acc") for task in CLASSIFICATION)
GENERATION_COLUMNS = (
    ("xsum", "rouge1"),
    ("xsum", "rouge2"),
    ("xsum", "rougeL"),
    ("cnn_dm", "rouge1"),
    ("cnn_dm", "rouge2"),
    ("cnn_dm", "rougeL"),
    ("coqa", "f1"),
    ("coqa", "em"),
    ("qasper", "f1"),
)

# 0-shot, accuracy not normalised by length.
TABLE_1: Rows = {
    "Llama 2 7B": {
        "full": (57.16, 78.07, 87.00, 76.35, 43.34, 77.71),
        "magnitude": (57.12, 77.31, 84.00, 70.33, 40.27, 66.54),
        "GRIFFIN": (57.11, 77.69, 86.00, 74.54, 42.75, 73.15),
    },
    "Llama 2 13B": {
        "full": (60.06, 79.05, 90.00, 79.46, 48.46, 80.61),
        "magnitude": (60.00, 79.00, 88.00, 74.07, 46.25, 70.52),
        "GRIFFIN": (60.10, 79.11, 89.00, 77.19, 46.84, 78.50),
    },
    "Gemma 7B": {
        "full": (60.61, 80.30, 88.00, 82.74, 50.09, 83.49),
        "magnitude": (46.24, 73.12, 57.00, 45.20, 32.76, 62.84),
        "GRIFFIN": (60.62, 79.98, 88.00, 81.65, 50.09, 81.90),
    },
    "Mistral 7B": {
        "full": (61.21, 80.58, 92.00, 80.89, 50.43, 83.61),
        "magnitude": (61.15, 80.36, 86.00, 74.20, 48.89, 60.40),
        "GRIFFIN": (61.18, 80.52, 91.00, 79.25, 50.00, 80.06),
    },
    "OPT 6.7B": {
        "full": (50.48, 76.28, 81.00, 65.53, 30.55, 66.12),
        "magnitude": (49.21, 72.63, 79.00, 47.60, 27.13, 40.15),
        "GRIFFIN": (50.44, 75.63, 80.00, 63.93, 30.55, 65.44),
    },
    "OPT 13B": {
        "full": (52.46, 75.90, 86.00, 67.05, 32.94, 65.81),
        "magnitude": (51.31, 74.21, 81.00, 49.41, 28.07, 38.75),
        "GRIFFIN": (52.42, 76.17, 86.00, 66.92, 33.19, 67.65),
    },
}

# XSum and CNN/DailyMail 1-shot, CoQA and QASPER 0-shot.
TABLE_2: Rows = {
    "Llama 2 7B": {
        "full": (27.15, 9.06, 22.62, 10.08, 0.13, 9.55, 77.35, 63.88, 26.31),
        "magnitude": (9.71, 1.31, 8.59, 9.66, 0.63, 9.32, 56.59, 39.93, 12.93),
        "GRIFFIN": (24.75, 7.41, 20.55, 10.97, 0.66, 10.37, 77.18, 63.58, 25.76),
    },
    "Llama 2 13B": {
        "full": (26.90, 9.45, 22.09, 2.51, 0.22, 2.34, 79.18, 66.37, 28.32),
        "magnitude": (5.72, 0.78, 5.06, 0.02, 0.00, 0.02, 65.69, 47.87, 15.55),
        "GRIFFIN": (25.69, 7.85, 20.89, 3.31, 0.78, 3.07, 79.22, 66.62, 27.91),
    },
    "Gemma 7B": {
        "full": (26.86, 9.15, 22.03, 17.45, 4.15, 15.94, 79.04, 65.25, 30.78),
        "magnitude": (1.49, 0.01, 1.47, 0.00, 0.00, 0.00, 2.92, 1.50, 7.02),
        "GRIFFIN": (25.86, 7.81, 20.93, 18.26, 4.75, 16.58, 78.52, 64.62, 27.37),
    },
    "Mistral 7B": {
        "full": (28.67, 10.21, 23.64, 0.28, 0.01, 0.28, 80.70, 67.30, 24.56),
        "magnitude": (3.58, 0.27, 3.31, 0.26, 0.03, 0.26, 61.99, 45.93, 17.18),
        "GRIFFIN": (26.59, 8.70, 22.17, 1.26, 0.21, 1.17, 80.15, 66.50, 23.92),
    },
    "OPT 6.7B": {
        "full": (23.60, 7.04, 19.46, 13.85, 1.54, 13.04, 68.70, 54.98, 18.53),
        "magnitude": (1.63, 0.00, 1.54, 1.20, 0.00, 1.17, 31.53, 16.52, 7.28),
        "GRIFFIN": (21.17, 5.42, 17.58, 13.01, 1.06, 12.26, 68.99, 55.00, 17.40),
    },
    "OPT 13B": {
        "full": (25.14, 7.93, 20.80, 13.22, 1.18, 12.46, 69.51, 55.67, 20.58),
        "magnitude": (1.23, 0.00, 1.21, 1.29, 0.00, 1.29, 39.38, 27.07, 8.87),
        "GRIFFIN": (22.11, 6.28, 18.29, 12.92, 1.13, 12.20, 69.07, 54.83, 20.16),
    },
    "ReluLlama 2 7B": {
        "full": (25.10, 7.81, 20.76, 20.95, 6.79, 19.24, 78.49, 66.73, 23.31),
        "magnitude": (9.09, 0.22, 8.20, 8.50, 0.14, 8.17, 19.43, 6.48, 7.21),
        "GRIFFIN": (21.83, 5.88, 18.09, 16.85, 4.96, 14.69, 78.35, 67.10, 22.29),
    },
}

# GRIFFIN uses top-k.
TABLE_4: Rows = {
    "Llama 2 7B": {
        "full": (27.15, 9.06, 22.62, 10.08, 0.13, 9.55, 77.35, 63.88, 26.31),
        "top-k": (24.75, 7.41, 20.55, 10.97, 0.66, 10.37, 77.18, 63.58, 25.76),
        "sampling": (21.04, 5.22, 17.12, 8.78, 0.49, 8.28, 76.15, 62.53, 24.46),
        "top-k + sampling": (23.13, 6.19, 19.13, 10.01, 0.47, 9.50, 76.66, 62.93, 25.07),
    },
    "Gemma 7B": {
        "full": (26.86, 9.15, 22.03, 17.45, 4.15, 15.94, 79.04, 65.25, 30.78),
        "top-k": (25.86, 7.81, 20.93, 18.26, 4.75, 16.58, 78.52, 64.62, 27.37),
        "sampling": (20.25, 5.16, 16.79, 8.34, 1.71, 7.72, 75.02, 59.93, 24.97),
        "top-k + sampling": (22.71, 6.49, 18.56, 8.14, 1.68, 7.52, 75.17, 60.58, 25.88),
    },
}

# By experiment.
SCORES = {
    "classification": PaperTable(1, CLASSIFICATION_COLUMNS, TABLE_1),
    "generation": PaperTable(2, GENERATION_COLUMNS, TABLE_2),
    "selection": PaperTable(4, GENERATION_COLUMNS, TABLE_4),
}


@dataclass(frozen=True, slots=True)
class PaperLatency:
    """A row of Table 3: seconds of the generation phase, on an NVIDIA L40, fp16, one sequence.

    magnitude, griffin: at 50 % and at 75 % sparsity.
    """

    model: str
    prompt_tokens: int
    tokens: int
    prompt: float
    full: float
    magnitude: tuple[float, float]
    griffin: tuple[float, float]


TABLE_3 = (
    PaperLatency("Llama 2 13B", 2048, 128, 0.5, 6.8, (5.4, 5.0), (5.4, 5.1)),
    PaperLatency("Llama 2 13B", 2048, 2048, 0.5, 119.1, (95.0, 83.4), (94.9, 82.8)),
    PaperLatency("Gemma 7B", 2048, 128, 0.3, 4.5, (4.1, 4.2), (4.2, 4.1)),
    PaperLatency("Gemma 7B", 2048, 2048, 0.3, 78.5, (67.7, 65.0), (67.4, 65.0)),
)
