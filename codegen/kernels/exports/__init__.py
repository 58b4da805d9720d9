"""Operators of TVM as folders of CUDA kernels that run without TVM: written by one module, loaded by the other."""
