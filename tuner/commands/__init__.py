"""The commands of `python -m tuner`, one module a topic."""
