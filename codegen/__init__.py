"""Text to kernel: rules, specs, schedules and devices in; compiled Triton and TVM kernels out."""

DISTRIBUTION = "trellis-ops"
"""What a package of the same name from elsewhere lacks; `trellis_ops.own_packages` looks for it."""
