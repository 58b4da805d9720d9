"""Kernels: what each is called with, in which order an operator launches them, and how they are compiled."""
