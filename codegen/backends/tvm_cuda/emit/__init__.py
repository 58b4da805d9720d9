"""What the TVM kernels for CUDA are made of: plain functions that emit TVMScript while a generated module is parsed."""
