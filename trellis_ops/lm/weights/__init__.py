"""Where the weights of a model come from: its file, or none yet."""
