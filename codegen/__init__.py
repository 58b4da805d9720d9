"""Text to kernel: rules, specs, schedules and devices in; compiled Triton and TVM kernels out."""
