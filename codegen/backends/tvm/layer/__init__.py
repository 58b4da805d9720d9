"""Functions that emit the kernels of a layer for CPUs: products with packed weights, norms, convolutions, gates."""
