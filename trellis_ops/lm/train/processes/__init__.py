"""Several processes that train as one, their memory, and what a signal stops."""
