"""The kernels of what stands between the products of a block: convolutions, norms, gates; see `arguments`.

They are declared here, and not in `codegen/kernels/signatures.py`: each byte of that file is in the digest of every
other kernel.
"""
