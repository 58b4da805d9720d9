"""How a kernel is laid out on a machine: a class for each backend's schedules, which answers every question of them."""
