"""TVM for CUDA: blocks of threads, nvcc, and launches through the driver."""
