"""`python -m codegen show`: the options that name a kernel, what they stand for, and what is printed of it."""
