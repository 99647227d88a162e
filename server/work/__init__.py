"""The queue, the workers' threads, and the jobs that engines run on them. Knows tokens, no text and no HTTP."""
