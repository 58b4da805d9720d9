"""A candidate against the float64 oracle, on ordinary and adversarial inputs."""
