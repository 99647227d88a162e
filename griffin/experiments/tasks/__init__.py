"""lm-eval's tasks, asked of the full and the pruned model."""
