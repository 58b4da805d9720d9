"""What Ctrl-C must not stop half-way: imports, and what else is done whole."""
