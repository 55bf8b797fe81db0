"""Triton kernels; each has a plain PyTorch version that its tests compare it with."""
