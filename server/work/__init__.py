"""The queue, the workers' threads, and the jobs that engines run. Knows tokens, but no text and no HTTP."""
