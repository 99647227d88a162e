"""Names of the paper's tasks, in the order of its tables. ``definitions`` says what they are; it needs lm-eval."""

CLASSIFICATION = ("hellaswag", "piqa", "copa", "arc_easy", "arc_challenge", "boolq")
GENERATION = ("xsum", "cnn_dm", "coqa", "qasper")
