"""The registered operators: checked arguments, autograd, autocast, transforms, and the memory of a call."""
