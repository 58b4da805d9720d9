"""Cases that only `make test-thorough` runs, as quicker ones of the same test, or tests beside it, show the same.

They repeat with another size, rule, type or schedule, and each compiles a kernel of its own or starts processes.
"""
