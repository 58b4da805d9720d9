"""The kernels between the matrix products of a block's decode step, where the products are torch's: on GPUs.

They share what `codegen.kernels.layer` declares of the whole block: its states, and the order of its vectors.
"""
