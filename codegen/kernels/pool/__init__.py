"""The kernel whose states lie in a pool: what it takes, and what its templates write of it.

It is declared here, and not in `codegen/kernels/signatures.py`: each byte of that file is in the digest of every other
kernel, so that a word about pools would make all their winners stale.
"""
