"""Kernels of other packages for Hopper GPUs, none of them needed anywhere else."""
