"""Random calls of random kernels against the float64 oracle.

`kernels` draws what is compiled, `cases` what it is called with; `checks` compares. `test_fuzz` is the part of `make
test`, with fixed seeds; `python -m tests.fuzz`, which is `make fuzz`, goes on with fresh ones until its time is over.
"""
