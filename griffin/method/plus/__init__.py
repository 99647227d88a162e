"""Method griffin+: a calibration, one ranking over all layers, and what replaces the removed neurons."""
