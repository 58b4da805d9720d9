"""Sources made of programs of a token, one module for each language."""
