"""The operators in PyTorch: chunked forward and reverse passes."""
