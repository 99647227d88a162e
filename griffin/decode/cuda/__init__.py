"""The step for a GPU: Triton kernels in CUDA graphs. Imported only if a CUDA device is used."""
