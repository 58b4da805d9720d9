"""What the kernels of any rule for CPUs are made of: emitters for the statements of a token's program.

Values of one axis are rows in scratch, `width` lanes to a row, whose lanes past the last feature hold anything; numbers
are buffers of one. Matrices and rings of pairs stay in their tensors, and are read and written in place.
"""
