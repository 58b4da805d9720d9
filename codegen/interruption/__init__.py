"""What neither Ctrl-C nor a fork may come between: imports, compiles, and what else is done whole."""
