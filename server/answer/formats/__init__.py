"""One file for each API: how its answers are written."""
