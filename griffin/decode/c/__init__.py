"""The step for a CPU, compiled from C."""
