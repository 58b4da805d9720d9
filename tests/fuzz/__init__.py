"""Random calls of random kernels against the float64 oracle.

`kernels` draws what is compiled, `cases` what it is called with; `checks` compares. `rules` has what is different for
operators of any rule. `test_fuzz`, and for Triton `tests/interpreted/test_fuzz.py`, are the part of `make test`, with
fixed seeds; `python -m tests.fuzz`, which is `make fuzz`, goes on with fresh ones until its time is over, and
interprets Triton's kernels in every fourth of its processes.
"""
