"""Derived maps and losses as text: eager PyTorch, Triton, TVM, TVM for CUDA."""
