"""Decoding at the speed of memory: weights packed once, a kernel for each block on CPUs, and a few on GPUs."""
