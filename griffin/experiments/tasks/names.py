"""Names of tasks: the paper's, in the order of its tables, and others. ``definitions`` defines them."""

CLASSIFICATION = ("hellaswag", "piqa", "copa", "arc_easy", "arc_challenge", "boolq")
GENERATION = ("xsum", "cnn_dm", "coqa", "qasper")
REASONING = ("humaneval", "arithmetic")
