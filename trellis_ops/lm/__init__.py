"""The reference language model: layers, state, generation, files."""
