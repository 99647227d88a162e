"""The step for a GPU: Triton kernels in CUDA graphs. Nothing here is imported where no CUDA device is used."""
