"""The paper's tasks by name, in the order of its tables. What they are is in ``tasks``, which needs lm-eval."""

CLASSIFICATION = ("hellaswag", "piqa", "copa", "arc_easy", "arc_challenge", "boolq")
GENERATION = ("xsum", "cnn_dm", "coqa", "qasper")
