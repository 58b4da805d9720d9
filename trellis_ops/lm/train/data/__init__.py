"""Text, tokens, and the lanes that a batch walks."""
