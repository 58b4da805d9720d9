"""Functions that emit the kernels between the products of a block for CPUs: rows, convolutions, norms, gates."""
