"""Kernels of our own for x86 CPUs, in C, compiled on the machine that they run on."""
