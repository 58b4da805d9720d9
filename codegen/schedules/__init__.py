"""How a kernel is laid out on a machine: choices of schedules, defaults, what is legal, what is known bad."""
