"""Method griffin+: calibration, one budget over all layers, what stands for the neurons that are gone."""
