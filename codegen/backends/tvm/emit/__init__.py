"""What the TVM kernels for CPUs are made of: plain functions that emit TVMScript while a generated module is parsed."""
