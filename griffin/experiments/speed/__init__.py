"""What is timed: tokens, prompts, methods, FF offload."""
