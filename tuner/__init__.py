"""Finding the fastest correct schedule for each spec on the machine at hand, and remembering it."""
