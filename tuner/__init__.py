"""Finding the fastest correct schedule for each spec on the machine at hand, and remembering it."""

DISTRIBUTION = "trellis-ops"
"""What a package of the same name from elsewhere lacks; `trellis_ops.own_packages` looks for it."""
