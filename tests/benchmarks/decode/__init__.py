"""Decoding by kernels of whole blocks, beside the rate of the memory and beside Llama."""
