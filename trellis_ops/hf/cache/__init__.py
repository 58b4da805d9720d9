"""The cache of a model in transformers: its state, how tokens are taken back, prompts whose beginning is stored."""
