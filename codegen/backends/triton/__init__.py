"""Triton: compiled by its own compiler, with tensor descriptors where a schedule asks for them."""
