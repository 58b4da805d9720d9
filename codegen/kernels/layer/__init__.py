"""The kernels that take a layer of a model one token further: their arguments, and the order of packed weights."""
