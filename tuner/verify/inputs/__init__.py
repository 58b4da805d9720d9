"""What a candidate is checked with: usual tensors, and hard ones, of every kind of operator."""
