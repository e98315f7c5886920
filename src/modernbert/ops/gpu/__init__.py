"""Triton kernels of the fused GPU encoder. Its modules import Triton: import them where a GPU is at hand."""
