"""What may be tried: the schedules of a spec, which are legal, and the order in which a sampler asks for them."""
